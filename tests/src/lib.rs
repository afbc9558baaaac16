//! Whole-system tests: boxes as network namespaces, real kubectl, a real registry
