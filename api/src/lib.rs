//! What server, agent and clients share: object model, quantities, selectors, patches, Status errors, identity, REST client
