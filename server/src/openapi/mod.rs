//! OpenAPI and discovery documents, made from the catalog on demand.
