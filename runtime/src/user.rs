//! User names of images: `USER` and `runAsUser` to numbers.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::spec::User;

/// Resolves an image's `USER` (`name`, `uid`, `name:group`, `uid:gid`, empty = root) in the image's own `/etc/passwd` and
/// `/etc/group`; `layers` as in [`crate::ContainerSpec::layers`]. `additional_gids` are the groups that list the user.
pub fn resolve_user(layers: &[PathBuf], user: &str) -> Result<User> {
    let _ = (layers, user);
    Err(Error::User("not yet".into()))
}
