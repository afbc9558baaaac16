//! Who may do what, over the wire and with real kubectl.
#![allow(clippy::unwrap_used)]

mod http_support;

use http::Method;
use http_support::{As, World};
use serde_json::{Value, json};

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn strangers_see_health_and_version_and_nothing_else() {
    let world = World::start().await;
    let mut nobody = world.client(As::Nobody).await;
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(nobody.get(path).await.code, 200, "{path}");
    }
    for (path, message) in [
        (
            "/api",
            "forbidden: User \"system:anonymous\" cannot get path \"/api\"",
        ),
        (
            "/metrics",
            "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"",
        ),
        (
            "/api/v1/namespaces/default/secrets",
            "secrets is forbidden: User \"system:anonymous\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"",
        ),
        (
            "/apis/apps/v1/deployments",
            "deployments.apps is forbidden: User \"system:anonymous\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope",
        ),
    ] {
        let got = nobody.get(path).await;
        assert_eq!((got.code.as_u16(), got.message().as_str()), (403, message));
        assert_eq!(got.json()["reason"], "Forbidden");
    }
}

#[tokio::test]
async fn a_bad_token_is_unauthorized_and_not_anonymous() {
    let world = World::start().await;
    let mut nobody = world.client(As::Nobody).await;
    for token in ["rubbish", "a.b.c", ""] {
        let header = bearer(token);
        let got = nobody
            .get_with("/api/v1/pods", &[("authorization", header.as_str())])
            .await;
        let wanted = if token.is_empty() { 403 } else { 401 };
        assert_eq!(got.code.as_u16(), wanted, "{token:?}");
    }
    let got = nobody
        .get_with("/version", &[("authorization", "Bearer x")])
        .await;
    assert_eq!(
        (got.code.as_u16(), got.message().as_str()),
        (401, "Unauthorized")
    );
}

#[tokio::test]
async fn a_service_account_may_what_its_roles_say_from_the_moment_they_are_written() {
    let world = World::start().await;
    let token = bearer(&world.service_account("app").await);
    let mut app = world.client(As::Nobody).await;
    let headers = [("authorization", token.as_str())];
    let maps = "/api/v1/namespaces/default/configmaps";
    let got = app.get_with(maps, &headers).await;
    assert_eq!(
        got.message(),
        "configmaps is forbidden: User \"system:serviceaccount:default:app\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    world
        .kubectl(&[
            "create",
            "role",
            "reader",
            "--verb=get,list",
            "--resource=configmaps",
        ])
        .await;
    world
        .kubectl(&[
            "create",
            "rolebinding",
            "reads",
            "--role=reader",
            "--serviceaccount=default:app",
        ])
        .await;
    assert_eq!(app.get_with(maps, &headers).await.code, 200);
    assert_eq!(
        app.get_with("/api/v1/namespaces/kube-system/configmaps", &headers)
            .await
            .code,
        403
    );
    assert_eq!(
        app.send(Method::DELETE, &format!("{maps}/x"), &headers, "")
            .await
            .code,
        403
    );
    world.kubectl(&["delete", "rolebinding", "reads"]).await;
    assert_eq!(app.get_with(maps, &headers).await.code, 403);
    world.kubectl(&["delete", "serviceaccount", "app"]).await;
    assert_eq!(app.get_with(maps, &headers).await.code, 401);
}

#[tokio::test]
async fn nobody_grants_more_than_he_has() {
    let world = World::start().await;
    world
        .kubectl(&[
            "create",
            "clusterrole",
            "role-maker",
            "--verb=create,update,patch,get",
            "--resource=roles,rolebindings",
        ])
        .await;
    world
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "makers",
            "--clusterrole=role-maker",
            "--user=eve",
        ])
        .await;
    let refused = world
        .kubectl_fails(&[
            "--as=eve",
            "create",
            "role",
            "power",
            "--verb=get",
            "--resource=secrets",
        ])
        .await;
    assert!(
        refused.contains(
            "roles.rbac.authorization.k8s.io \"power\" is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
        ),
        "{refused}"
    );
    let refused = world
        .kubectl_fails(&[
            "--as=eve",
            "create",
            "rolebinding",
            "root",
            "--clusterrole=cluster-admin",
            "--user=eve",
        ])
        .await;
    assert!(
        refused.contains("is attempting to grant RBAC permissions not currently held"),
        "{refused}"
    );
    world
        .kubectl(&[
            "--as=eve",
            "create",
            "role",
            "same",
            "--verb=get",
            "--resource=roles.rbac.authorization.k8s.io",
        ])
        .await;
}

#[tokio::test]
async fn kubectl_auth_tells_who_and_what() {
    let world = World::start().await;
    assert_eq!(
        world
            .kubectl(&["auth", "can-i", "create", "pods"])
            .await
            .trim(),
        "yes"
    );
    assert_eq!(
        world.kubectl(&["auth", "can-i", "*", "*"]).await.trim(),
        "yes"
    );
    let (_, out, _) = world
        .kubectl_raw(&["--as=bob", "auth", "can-i", "create", "pods"], "")
        .await;
    assert_eq!(out.trim(), "no");
    assert_eq!(
        world
            .kubectl(&["--as=bob", "auth", "can-i", "get", "/version"])
            .await
            .trim(),
        "yes"
    );
    let who = world
        .kubectl(&["auth", "whoami", "--as=bob", "--as-group=dev", "-o", "json"])
        .await;
    let who: Value = serde_json::from_str(&who).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "bob");
    assert_eq!(
        who["status"]["userInfo"]["groups"],
        json!(["dev", "system:authenticated"])
    );
    let list = world
        .kubectl(&["auth", "can-i", "--list", "--as=bob"])
        .await;
    assert!(
        list.contains("selfsubjectaccessreviews.authorization.k8s.io"),
        "{list}"
    );
    assert!(list.contains("[/version]"), "{list}");
    world
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "b",
            "--clusterrole=view",
            "--user=bob",
        ])
        .await;
    assert_eq!(
        world
            .kubectl(&["--as=bob", "auth", "can-i", "list", "pods", "-A"])
            .await
            .trim(),
        "yes"
    );
    let (_, out, _) = world
        .kubectl_raw(&["--as=bob", "auth", "can-i", "get", "secrets"], "")
        .await;
    assert_eq!(out.trim(), "no");
}

#[tokio::test]
async fn only_who_may_impersonate_does() {
    let world = World::start().await;
    let token = bearer(&world.service_account("app").await);
    let mut app = world.client(As::Nobody).await;
    let headers = [
        ("authorization", token.as_str()),
        ("impersonate-user", "root"),
    ];
    let got = app.get_with("/api/v1/pods", &headers).await;
    assert_eq!(
        got.message(),
        "users \"root\" is forbidden: User \"system:serviceaccount:default:app\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    let mut admin = world.client(As::Admin).await;
    let got = admin
        .get_with("/api/v1/pods", &[("impersonate-user", "bob")])
        .await;
    assert_eq!(got.code, 403);
    assert!(
        got.message().contains("User \"bob\" cannot list"),
        "{}",
        got.message()
    );
}

#[tokio::test]
async fn token_reviews_tell_whose_a_token_is() {
    let world = World::start().await;
    let token = world.service_account("app").await;
    let mut admin = world.client(As::Admin).await;
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = |token: &str| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let good = admin.post(path, &review(&token)).await.json();
    assert_eq!(good["status"]["authenticated"], true);
    assert_eq!(
        good["status"]["user"]["username"],
        "system:serviceaccount:default:app"
    );
    let bad = admin.post(path, &review("rubbish")).await.json();
    assert_eq!(bad["status"].get("authenticated"), None);
    assert!(
        bad["status"]["error"]
            .as_str()
            .unwrap()
            .contains("invalid bearer token"),
        "{bad}"
    );
}

#[tokio::test]
async fn an_agent_sees_what_its_pods_need_and_writes_about_itself() {
    let world = World::start().await;
    world
        .apply(
            r#"
{apiVersion: v1, kind: Secret, metadata: {name: mine}}
---
{apiVersion: v1, kind: Secret, metadata: {name: other}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}
---
{apiVersion: v1, kind: Node, metadata: {name: box-1}}
---
{apiVersion: v1, kind: Node, metadata: {name: box-2}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: box-1
  containers: [{name: c, image: x}]
  volumes: [{name: s, secret: {secretName: mine}}]
"#,
        )
        .await;
    let (cert, key) = world.server.node_credentials("box-1").unwrap();
    let mut agent = world.client(As::Certificate(cert, key)).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(agent.get(&format!("{secrets}/mine")).await.code, 200);
    let got = agent.get(&format!("{secrets}/other")).await;
    assert_eq!(
        got.message(),
        "secrets \"other\" is forbidden: User \"system:node:box-1\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": no relationship found between node \"box-1\" and this object"
    );
    assert_eq!(agent.get(secrets).await.code, 403);
    assert_eq!(agent.get("/api/v1/pods").await.code, 403);
    let own = agent
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dbox-1")
        .await;
    assert_eq!(own.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(agent.get("/api/v1/services").await.code, 200);
    assert_eq!(
        agent
            .get("/apis/discovery.k8s.io/v1/endpointslices")
            .await
            .code,
        200
    );

    let patch = [("content-type", "application/merge-patch+json")];
    let body = json!({"metadata": {"annotations": {"a": "b"}}}).to_string();
    assert_eq!(
        agent
            .send(Method::PATCH, "/api/v1/nodes/box-1", &patch, body.clone())
            .await
            .code,
        200
    );
    assert_eq!(
        agent
            .send(Method::PATCH, "/api/v1/nodes/box-2", &patch, body)
            .await
            .code,
        403
    );

    let lease = |name: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(agent.post(leases, &lease("box-1")).await.code, 201);
    assert_eq!(agent.get(&format!("{leases}/box-2")).await.code, 403);

    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}});
    let got = agent
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &token,
        )
        .await;
    assert_eq!(got.code, 201, "{}", got.text());
}

#[tokio::test]
async fn aggregated_roles_follow_the_roles_they_select() {
    let world = World::start().await;
    world
        .apply(
            r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: more-to-view
  labels: {rbac.authorization.k8s.io/aggregate-to-view: "true"}
rules: [{apiGroups: [example.org], resources: [things], verbs: [get]}]
"#,
        )
        .await;
    let mut admin = world.client(As::Admin).await;
    for role in ["view", "edit", "admin"] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}");
        for _ in 0.. {
            if admin.get(&path).await.text().contains("example.org") {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}
