//! What the store knows, as a value: images, names, layers. Pure; [`super::store`] keeps it on disk.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::ImageConfig;
use super::reference::{Reference, Target};

/// One image: facts that never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Digest of the config: the image id.
    pub id: Digest,
    pub manifest: Digest,
    /// Bytes in the registry.
    pub size: u64,
    /// Chain ids, lowest first.
    pub layers: Vec<Digest>,
    /// Read from the config's blob.
    #[serde(skip)]
    pub config: ImageConfig,
}

/// What a name points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub image: Digest,
    /// What the registry resolved the name to: an index or a manifest.
    pub target: Digest,
}

/// One unpacked layer; kept beside it on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub chain: Digest,
    pub bytes: u64,
    pub inodes: u64,
    /// Nothing below this layer is visible.
    pub opaque: bool,
}

/// The state of the store. `names` point only to `images`, whose layers are all in `layers`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub images: BTreeMap<Digest, Record>,
    /// By canonical reference.
    pub names: BTreeMap<String, Pointer>,
    pub layers: BTreeMap<Digest, Layer>,
}

/// What nobody needs any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Garbage {
    pub images: Vec<Digest>,
    pub layers: Vec<Digest>,
}

impl Catalog {
    /// Adds an image under `reference`, and under the digest that the registry gave for it.
    pub(crate) fn insert(
        &mut self,
        record: Record,
        reference: Option<&Reference>,
        target: &Digest,
    ) {
        let pointer = Pointer {
            image: record.id.clone(),
            target: target.clone(),
        };
        if let Some(reference) = reference {
            self.names.insert(
                reference.with_digest(target.clone()).to_string(),
                pointer.clone(),
            );
            self.names.insert(reference.to_string(), pointer);
        }
        self.images.insert(record.id.clone(), record);
    }

    pub(crate) fn resolve(&self, reference: &Reference) -> Option<&Record> {
        if let Some(pointer) = self.names.get(&reference.to_string()) {
            return self.images.get(&pointer.image);
        }
        // A digest names the same content in whatever repository it was found, but the caller may only be entitled to
        // its own: a manifest counts only if some name of the same repository points to it.
        match reference.target() {
            Target::Digest(digest) => {
                let prefix = format!("{}@", reference.name());
                self.names
                    .iter()
                    .filter(|(name, _)| name.starts_with(&prefix))
                    .filter_map(|(_, pointer)| self.images.get(&pointer.image))
                    .find(|record| record.manifest == *digest)
            }
            Target::Tag(_) => None,
        }
    }

    /// By image id, or manifest or index digest.
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Record> {
        self.images
            .get(digest)
            .or_else(|| {
                self.images
                    .values()
                    .find(|record| record.manifest == *digest)
            })
            .or_else(|| {
                let pointer = self
                    .names
                    .values()
                    .find(|pointer| pointer.target == *digest)?;
                self.images.get(&pointer.image)
            })
    }

    /// Takes a name away. The digests of the same repository that the image got with its tags go with its last tag.
    pub(crate) fn remove_name(&mut self, reference: &Reference) {
        let Some(pointer) = self.names.remove(&reference.to_string()) else {
            return;
        };
        let (tag, digest) = (
            format!("{}:", reference.name()),
            format!("{}@", reference.name()),
        );
        let same = |name: &String, p: &Pointer, prefix: &str| {
            p.image == pointer.image && name.starts_with(prefix)
        };
        if !self.names.iter().any(|(name, p)| same(name, p, &tag)) {
            self.names.retain(|name, p| !same(name, p, &digest));
        }
    }

    /// Tags and digests of an image, in that order.
    pub(crate) fn names_of(&self, id: &Digest) -> (Vec<String>, Vec<String>) {
        let names = self
            .names
            .iter()
            .filter(|(_, pointer)| pointer.image == *id)
            .map(|(name, _)| name.clone());
        names.partition(|name| !name.contains('@'))
    }

    /// Removes images without names that are not in use, and layers that no image has and nobody holds.
    pub(crate) fn collect(
        &mut self,
        in_use: &BTreeSet<Digest>,
        held: impl Fn(&Digest) -> bool,
    ) -> Garbage {
        let named: BTreeSet<&Digest> = self.names.values().map(|pointer| &pointer.image).collect();
        let images: Vec<Digest> = self
            .images
            .keys()
            .filter(|id| !named.contains(id) && !in_use.contains(id))
            .cloned()
            .collect();
        for id in &images {
            self.images.remove(id);
        }
        let needed: BTreeSet<&Digest> = self
            .images
            .values()
            .flat_map(|record| &record.layers)
            .collect();
        let layers: Vec<Digest> = self
            .layers
            .keys()
            .filter(|chain| !needed.contains(chain) && !held(chain))
            .cloned()
            .collect();
        for chain in &layers {
            self.layers.remove(chain);
        }
        Garbage { images, layers }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn catalog(images: &[(&str, &str, &[&str])]) -> Catalog {
        let mut catalog = Catalog::default();
        for (name, id, layers) in images {
            let record = Record {
                id: digest(id),
                manifest: digest(&format!("manifest {id}")),
                size: 1,
                layers: layers.iter().map(|l| digest(l)).collect(),
                config: ImageConfig::default(),
            };
            for layer in *layers {
                let layer = Layer {
                    chain: digest(layer),
                    bytes: 1,
                    inodes: 1,
                    opaque: false,
                };
                catalog.layers.insert(layer.chain.clone(), layer);
            }
            catalog.insert(
                record,
                Some(&name.parse().unwrap()),
                &digest(&format!("index {id}")),
            );
        }
        catalog
    }

    #[test]
    fn an_image_is_found_by_tag_digest_and_id() {
        let catalog = catalog(&[("app:1", "a", &["x"]), ("other:1", "b", &["x"])]);
        let tag: Reference = "app:1".parse().unwrap();
        let id = Some(digest("a"));
        let found = |r: &Reference| catalog.resolve(r).map(|record| record.id.clone());
        assert_eq!(found(&tag), id);
        assert_eq!(found(&tag.with_digest(digest("index a"))), id);
        assert_eq!(found(&tag.with_digest(digest("manifest a"))), id);
        assert_eq!(found(&tag.with_digest(digest("manifest b"))), None);
        for known in ["a", "manifest a", "index a"] {
            assert_eq!(
                catalog.get(&digest(known)).map(|r| r.id.clone()),
                id,
                "{known}"
            );
        }
        assert_eq!(found(&"app:2".parse().unwrap()), None);
    }

    #[test]
    fn a_moved_tag_leaves_the_old_image_with_its_digest() {
        let catalog = catalog(&[("app:1", "a", &["x"]), ("app:1", "b", &["y"])]);
        assert_eq!(catalog.names_of(&digest("a")).0, Vec::<String>::new());
        assert_eq!(catalog.names_of(&digest("a")).1.len(), 1);
        assert_eq!(
            catalog.names_of(&digest("b")).0,
            ["docker.io/library/app:1"]
        );
    }

    #[test]
    fn the_last_tag_takes_the_digests_of_its_repository_along() {
        let mut catalog = catalog(&[
            ("app:1", "a", &["x"]),
            ("app:2", "a", &["x"]),
            ("copy:1", "a", &["x"]),
        ]);
        catalog.remove_name(&"app:1".parse().unwrap());
        assert_eq!(catalog.names_of(&digest("a")).1.len(), 2);
        catalog.remove_name(&"app:2".parse().unwrap());
        let (tags, digests) = catalog.names_of(&digest("a"));
        assert_eq!(tags, ["docker.io/library/copy:1"]);
        assert_eq!(digests.len(), 1);
        catalog.remove_name(&"copy:1".parse().unwrap());
        assert!(catalog.names.is_empty());
    }

    #[test]
    fn garbage_is_what_no_name_no_container_and_no_pull_needs() {
        let images: &[(&str, &str, &[&str])] = &[
            ("a:1", "a", &["base", "a"]),
            ("b:1", "b", &["base", "b"]),
            ("c:1", "c", &["c"]),
        ];
        let mut catalog = catalog(images);
        assert_eq!(
            catalog.collect(&BTreeSet::new(), |_| false),
            Garbage::default()
        );
        catalog.names.retain(|name, _| name.contains("/b"));
        let garbage = catalog.collect(&BTreeSet::from([digest("c")]), |chain| {
            *chain == digest("a")
        });
        assert_eq!(
            garbage,
            Garbage {
                images: vec![digest("a")],
                layers: vec![]
            }
        );
        let garbage = catalog.collect(&BTreeSet::new(), |_| false);
        assert_eq!(garbage.images, [digest("c")]);
        assert_eq!(
            BTreeSet::from_iter(garbage.layers),
            BTreeSet::from([digest("a"), digest("c")])
        );
        assert!(catalog.layers.contains_key(&digest("base")));
    }
}
