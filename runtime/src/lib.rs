//! OCI images and containers on the bare kernel: content, layers, bundles, the keeper, exec, cgroups
