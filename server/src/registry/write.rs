//! create and update: the road of every write.

use std::sync::Arc;

use amphipod_api::{FieldError, Reason, Status, meta, names};
use jiff::Timestamp;
use serde_json::Value;

use super::apply::note_owners;
use super::{
    Context, FieldValidation, Input, Operation, Registry, Request, metadata, shown, storage_status,
};
use crate::cache::{EventType, Object, encode};
use crate::fields::Managed;
use crate::resources::schema::strict_status;
use crate::resources::{Descriptor, Durability, StrategyContext, SubresourceKind};
use crate::store::{self, Change, Expect, Key, StoreError, Write};

/// How often a name is generated anew when it is taken.
const NAME_ATTEMPTS: usize = 8;
/// How often a write that is not bound to a version is tried again when others write the object at the same time.
const CONFLICT_ATTEMPTS: usize = 256;
/// Resources whose writes allocate from what the others of them hold; see `Registry::allocation`.
const ALLOCATING: [&str; 1] = ["services"];

/// Who owns the fields of a changed object.
pub(super) enum Owners {
    /// These, all of them.
    Are(Managed),
    /// The writer owns what it changed.
    Writer,
}

/// What came of a commit.
pub(super) enum Committed {
    Done(Arc<Object>),
    /// Somebody else was faster.
    Conflict,
}

impl Registry {
    /// Creates an object.
    ///
    /// # Errors
    /// 400 for a body that cannot be read, 403 from admission, 409 if the name is taken, 422 for an invalid object.
    pub async fn create(&self, cx: &Context, input: Input) -> Result<Arc<Object>, Status> {
        let object = self.decode(cx, input)?;
        self.create_value(cx, object, &Managed::default()).await
    }

    /// Creates an object whose fields have these owners.
    pub(super) async fn create_value(
        &self,
        cx: &Context,
        mut object: Value,
        managed: &Managed,
    ) -> Result<Arc<Object>, Status> {
        if !cx.descriptor.stored {
            return Err(Status::method_not_supported(&cx.group_resource(), "create"));
        }
        if !meta::resource_version(&object).is_empty() {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Status::failure(500, Reason::UNKNOWN, message));
        }
        match meta::namespace(&object) {
            "" => {}
            namespace if cx.descriptor.namespaced() && namespace != cx.namespace => {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            _ => {}
        }
        let now = Timestamp::now();
        metadata::fill(&mut object, &cx.namespace, now);
        metadata::set_managed(&mut object, managed);
        let base = match meta::name(&object) {
            "" => meta::str_at(&object, &["metadata", "generateName"]).to_owned(),
            _ => String::new(),
        };
        if !base.is_empty() {
            meta::metadata_mut(&mut object)
                .insert("name".into(), names::generate_name(&base).into());
        }
        let strategy = &cx.descriptor.strategy;
        strategy.default(&mut object);
        let name = meta::name(&object).to_owned();
        let lookup = &*self.cache;
        let request = Request {
            context: cx,
            operation: Operation::Create,
            name: &name,
            old: None,
            lookup,
        };
        self.admission.admit(&request, &mut object)?;
        let _allocating = self.allocation(cx, Operation::Create).await;
        strategy.prepare_for_create(&self.strategy_context(cx, now), &mut object)?;
        let mut errors =
            metadata::validate_create(&object, cx.descriptor.namespaced(), strategy.name_rule());
        errors.extend(strategy.validate_create(&object));
        if !errors.is_empty() {
            return Err(Status::invalid(
                &cx.group_kind(),
                meta::name(&object),
                &errors,
            ));
        }
        strategy
            .warnings(&object)
            .into_iter()
            .for_each(|warning| cx.warn(warning));
        self.admission.validate(&request, Some(&object))?;

        for _ in 0..NAME_ATTEMPTS {
            if cx.dry_run {
                match self
                    .table(&cx.descriptor)
                    .get(&cx.namespace, meta::name(&object))
                {
                    None => return self.detached(cx, &mut object, 0),
                    Some(_) if base.is_empty() => return Err(self.taken(cx, meta::name(&object))),
                    Some(_) => {}
                }
            } else {
                let name = meta::name(&object).to_owned();
                match self
                    .commit_put(cx, &name, Expect::Absent, &mut object)
                    .await?
                {
                    Committed::Done(object) => return Ok(object),
                    Committed::Conflict if base.is_empty() => return Err(self.taken(cx, &name)),
                    Committed::Conflict => {}
                }
            }
            meta::metadata_mut(&mut object)
                .insert("name".into(), names::generate_name(&base).into());
        }
        Err(Status::generate_name_conflict(
            &cx.group_resource(),
            meta::name(&object),
            1,
        ))
    }

    /// Replaces an object, or with `status` and the like the part of it that the subresource is. True: it was created.
    ///
    /// # Errors
    /// As create; 404; 409 if the body is of another version than the stored one.
    pub async fn update(
        &self,
        cx: &Context,
        name: &str,
        input: Input,
    ) -> Result<(Arc<Object>, bool), Status> {
        if let Some(scaled) = self.update_scale(cx, name, &input).await {
            return Ok((scaled?, false));
        }
        let new = self.decode(cx, input)?;
        check_name(cx, name, &new)?;
        let exists = self
            .table(&cx.descriptor)
            .get(&cx.namespace, name)
            .is_some();
        if !exists && cx.subresource.is_none() && cx.descriptor.strategy.allow_create_on_update() {
            if !meta::resource_version(&new).is_empty() {
                // As upstream: a version was given, so there must have been an object.
                return Err(Status::not_found(&cx.group_resource(), name));
            }
            let made = self.create_value(cx, new, &Managed::default()).await?;
            return Ok((made, true));
        }
        Ok((self.modify(cx, name, |_| Ok(new.clone())).await?, false))
    }

    /// Reads the object, changes it, writes it back; again if somebody else wrote it meanwhile. For callers inside the
    /// server. A change that changes nothing writes nothing.
    ///
    /// # Errors
    /// What `change` says, and as [`Registry::update`].
    pub async fn update_with(
        &self,
        cx: &Context,
        name: &str,
        mut change: impl FnMut(&mut Value) -> Result<(), Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        self.modify(cx, name, |old| {
            let mut new = old.clone();
            change(&mut new)?;
            Ok(new)
        })
        .await
    }

    /// The road of updates and patches. `change` makes the new object from the stored one; if what it makes has no
    /// resourceVersion, or the stored one's, and others write at the same time, it is asked again.
    pub(super) async fn modify(
        &self,
        cx: &Context,
        name: &str,
        mut change: impl FnMut(&Value) -> Result<Value, Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        self.modify_as(cx, name, |old| Ok((change(old)?, Owners::Writer)))
            .await
    }

    /// As [`Registry::modify`], for a change that says who owns its fields.
    pub(super) async fn modify_as(
        &self,
        cx: &Context,
        name: &str,
        mut change: impl FnMut(&Value) -> Result<(Value, Owners), Status> + Send,
    ) -> Result<Arc<Object>, Status> {
        let table = self.table(&cx.descriptor);
        let _allocating = self.allocation(cx, Operation::Update).await;
        for _ in 0..CONFLICT_ATTEMPTS {
            let stored = table
                .get(&cx.namespace, name)
                .ok_or_else(|| Status::not_found(&cx.group_resource(), name))?;
            let old = shown(&cx.descriptor, stored.clone()).value();
            let (mut new, owners) = change(&old)?;
            self.check_version(cx, name, &new, &old)?;
            let claimed = metadata::take_managed(&mut new);
            self.prepare_update(cx, name, &mut new, &old)?;
            match owners {
                Owners::Are(managed) => metadata::set_managed(&mut new, &managed),
                Owners::Writer => note_owners(cx, &mut new, &old, &claimed),
            }
            if new == old {
                return Ok(shown(&cx.descriptor, stored));
            }
            if self.goes_with_update(cx, &new, &old) {
                match self.finish_delete(cx, &stored).await? {
                    Committed::Done(gone) => {
                        return self.detached(cx, &mut new, gone.meta.revision);
                    }
                    Committed::Conflict => continue,
                }
            }
            if cx.dry_run {
                return self.detached(cx, &mut new, stored.meta.revision);
            }
            match self
                .commit_put(cx, name, Expect::Revision(stored.meta.revision), &mut new)
                .await?
            {
                Committed::Done(object) => return Ok(object),
                // The next round tells whether the version that the caller named is still the stored one.
                Committed::Conflict => {}
            }
        }
        Err(Status::modified(&cx.group_resource(), name))
    }

    /// Optimistic locking.
    fn check_version(
        &self,
        cx: &Context,
        name: &str,
        new: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let (uid, stored) = (meta::uid(new), meta::uid(old));
        if !uid.is_empty() && uid != stored {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}",
                cx.descriptor.plural,
                meta::join_key(&cx.namespace, name),
            );
            return Err(Status::conflict(&cx.group_resource(), name, why));
        }
        match meta::resource_version(new) {
            "" | "0" if cx.descriptor.strategy.allow_unconditional_update() => Ok(()),
            "" | "0" => {
                let error = FieldError::invalid(
                    "metadata.resourceVersion",
                    0,
                    "must be specified for an update",
                );
                Err(Status::invalid(&cx.group_kind(), name, &[error]))
            }
            version if version == meta::resource_version(old) => Ok(()),
            _ => Err(Status::modified(&cx.group_resource(), name)),
        }
    }

    /// Defaults, admission, preparation and validation of a changed object.
    fn prepare_update(
        &self,
        cx: &Context,
        name: &str,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let strategy = &cx.descriptor.strategy;
        let part = self.part_name(cx);
        strategy.default(new);
        metadata::carry_over(new, old);
        let request = Request {
            context: cx,
            operation: Operation::Update,
            name,
            old: Some(old),
            lookup: &*self.cache,
        };
        self.admission.admit(&request, new)?;
        strategy.prepare_for_update(
            &self.strategy_context(cx, Timestamp::now()),
            new,
            old,
            part,
        )?;
        let mut errors = metadata::validate_update(new, old);
        errors.extend(strategy.validate_update(new, old, part));
        if !errors.is_empty() {
            return Err(Status::invalid(&cx.group_kind(), name, &errors));
        }
        if part.is_none() {
            strategy
                .warnings(new)
                .into_iter()
                .for_each(|warning| cx.warn(warning));
        }
        self.admission.validate(&request, Some(new))
    }

    /// What the strategy is told to be the subresource: parts of the object, not other ways to change all of it.
    fn part_name<'a>(&self, cx: &'a Context) -> Option<&'a str> {
        let name = cx.subresource.as_deref()?;
        let part = cx.descriptor.subresource(name)?;
        matches!(part.what, SubresourceKind::Part | SubresourceKind::Finalize).then_some(name)
    }

    pub(super) fn strategy_context<'a>(
        &'a self,
        cx: &'a Context,
        now: Timestamp,
    ) -> StrategyContext<'a> {
        StrategyContext {
            user: &cx.user,
            namespace: &cx.namespace,
            now,
            dry_run: cx.dry_run,
            lookup: &*self.cache,
            privileges: &*self.privileges,
            config: &self.config,
            warnings: &cx.warnings,
        }
    }

    /// One after the other: writes that take from what there is, and must see what the one before took.
    async fn allocation(
        &self,
        cx: &Context,
        operation: Operation,
    ) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let grows = operation == Operation::Create || cx.subresource.as_deref() == Some("resize");
        let allocates = ALLOCATING.contains(&&*cx.descriptor.resource())
            || (grows && self.has_quota(&cx.namespace));
        if allocates {
            Some(self.allocating.lock().await)
        } else {
            None
        }
    }

    fn has_quota(&self, namespace: &str) -> bool {
        let mut found = false;
        if let Some(quotas) = self
            .cache
            .table("resourcequotas")
            .filter(|_| !namespace.is_empty())
        {
            quotas.for_each(Some(namespace), |_| found = true);
        }
        found
    }

    /// Reads a body.
    pub(super) fn decode(&self, cx: &Context, input: Input) -> Result<Value, Status> {
        let descriptor = &cx.descriptor;
        let (api_version, kind) = (descriptor.api_version(), &*descriptor.kind);
        let decoded = match input {
            Input::Value(value) => return check_kind(descriptor, value),
            Input::Json(body) => descriptor.schema().decode_json(&body),
            Input::Yaml(body) => descriptor.schema().decode_yaml(&body),
        };
        let decoded = decoded.map_err(|error| error.status(&api_version, kind))?;
        self.note_strict(cx, &decoded.strict)?;
        check_kind(descriptor, decoded.value)
    }

    /// Applies `fieldValidation` to unknown and duplicate fields.
    pub(super) fn note_strict(&self, cx: &Context, strict: &[String]) -> Result<(), Status> {
        match cx.field_validation {
            FieldValidation::Strict if !strict.is_empty() => Err(strict_status(
                &cx.descriptor.api_version(),
                &cx.descriptor.kind,
                strict,
            )),
            FieldValidation::Warn => {
                strict.iter().for_each(|text| cx.warn(text.clone()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn commit_put(
        &self,
        cx: &Context,
        name: &str,
        expect: Expect,
        object: &mut Value,
    ) -> Result<Committed, Status> {
        if let Some(conversion) = &cx.descriptor.conversion {
            (conversion.to_stored)(object);
        }
        let bytes = encode(object);
        let change = Change::Put(bytes.clone());
        // A step of a deletion leads to less being stored.
        let frees = expect != Expect::Absent && meta::is_deleting(object);
        let Some(revision) = self.commit(cx, name, expect, change, frees).await? else {
            return Ok(Committed::Conflict);
        };
        let table = self.table(&cx.descriptor);
        // The cache has it before the commit answers; only a still newer one may be in its place.
        let object = match table.get(&cx.namespace, name) {
            Some(object) if object.meta.revision == revision => object,
            _ => Object::decode(&bytes, revision, EventType::Added, table.fields())
                .map(Arc::new)
                .map_err(Status::internal_error)?,
        };
        Ok(Committed::Done(shown(&cx.descriptor, object)))
    }

    /// Commits one change; `None`: the expectation does not hold.
    pub(super) async fn commit(
        &self,
        cx: &Context,
        name: &str,
        expect: Expect,
        change: Change,
        frees: bool,
    ) -> Result<Option<u64>, Status> {
        let lazy = match (cx.descriptor.durability, &change) {
            (Durability::Immediate, _) => false,
            (Durability::Lazy, _) => true,
            (Durability::LazyFields(fields), Change::Put(new)) => {
                let old = self.table(&cx.descriptor).get(&cx.namespace, name);
                let new = serde_json::from_slice(new);
                old.zip(new.ok())
                    .is_some_and(|(old, new)| only_differ_in(fields, old.value(), new))
            }
            (Durability::LazyFields(_), Change::Delete) => false,
        };
        let write = Write {
            key: Key::new(&cx.descriptor.storage_resource(), &cx.namespace, name),
            expect,
            change,
            frees,
            durability: if lazy {
                store::Durability::Lazy
            } else {
                store::Durability::Immediate
            },
        };
        match self.store.commit(write).await {
            Ok(revision) => Ok(Some(revision)),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(storage_status(&error)),
        }
    }

    /// An object that is not stored: the answer to a dry run.
    pub(super) fn detached(
        &self,
        cx: &Context,
        object: &mut Value,
        revision: u64,
    ) -> Result<Arc<Object>, Status> {
        crate::cache::detached(object, revision, self.table(&cx.descriptor).fields())
            .map_err(Status::internal_error)
    }

    /// 409 for a name that is taken.
    fn taken(&self, cx: &Context, name: &str) -> Status {
        let mut status = Status::already_exists(&cx.group_resource(), name);
        let there = self.table(&cx.descriptor).get(&cx.namespace, name);
        if there.is_some_and(|object| object.meta.is_deleting()) {
            status.message = format!("object is being deleted: {}", status.message);
        }
        status
    }
}

/// Refuses a body of another kind; fills in kind and apiVersion if they were left out.
fn check_kind(descriptor: &Descriptor, mut object: Value) -> Result<Value, Status> {
    let expected = descriptor.api_version();
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): it is no object",
            descriptor.kind
        )));
    };
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !kind.is_empty() && kind != descriptor.kind {
        let version = version.rsplit('/').next().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: converting ({version}.{kind}) to ({}.{}): unknown conversion",
            descriptor.kind, descriptor.version, descriptor.kind
        )));
    }
    if !version.is_empty() && version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    map.insert("apiVersion".into(), expected.into());
    map.insert("kind".into(), descriptor.kind.as_ref().into());
    Ok(object)
}

/// Refuses a body whose name or namespace is not that of the path.
pub(super) fn check_name(cx: &Context, name: &str, object: &Value) -> Result<(), Status> {
    match meta::name(object) {
        have if have == name => {}
        "" => {
            return Err(Status::bad_request(format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )));
        }
        have => {
            return Err(Status::bad_request(format!(
                "the name of the object ({have}) does not match the name on the URL ({name})"
            )));
        }
    }
    match meta::namespace(object) {
        "" => Ok(()),
        have if have == cx.namespace => Ok(()),
        have if cx.descriptor.namespaced() => Err(Status::bad_request(format!(
            "the namespace of the object ({have}) does not match the namespace on the request ({})",
            cx.namespace
        ))),
        _ => Ok(()),
    }
}

/// Whether two states of an object are the same but for these fields (JSON pointers) and the resourceVersion.
fn only_differ_in(fields: &[&str], mut old: Value, mut new: Value) -> bool {
    for object in [&mut old, &mut new] {
        for field in fields.iter().chain(&["/metadata/resourceVersion"]) {
            if let Some((parent, field)) = field.rsplit_once('/')
                && let Some(Value::Object(parent)) = object.pointer_mut(parent)
            {
                parent.remove(field);
            }
        }
    }
    old == new
}
