//! The cache as strategies and admission see it.

use serde_json::Value;

use crate::cache::Cache;
use crate::resources::Lookup;

impl Lookup for Cache {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        Some(self.table(resource)?.get(namespace, name)?.value())
    }

    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        self.table(resource)
            .map(|table| {
                table
                    .list(namespace)
                    .items
                    .iter()
                    .map(|object| object.value())
                    .collect()
            })
            .unwrap_or_default()
    }

    fn scan_field(&self, resource: &str, field: &str, visit: &mut dyn FnMut(&str, &str, &str)) {
        if let Some(table) = self.table(resource) {
            table.for_each(None, |object| {
                if let Some(value) = object.field(table.fields(), field) {
                    visit(&object.meta.namespace, &object.meta.name, value);
                }
            });
        }
    }
}
