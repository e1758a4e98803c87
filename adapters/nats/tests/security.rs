//! Every way to prove who one is, on real servers that demand it; and what is said when it isn't proven.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use postrider_core::{
    Broker, BrokerUrl, Bytes, Connector, Env, Envelope, Error, PublisherExt, Result as CoreResult,
};
use postrider_nats::NatsConnector;
use serde_json::{Value, json};

use support::PrivateServer;

async fn connect(url: &str) -> CoreResult<Broker> {
    NatsConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

/// Connecting isn't enough: a publish must be confirmed.
async fn works(url: &str) -> Result<(), Error> {
    let broker = connect(url).await?;
    broker.declare("orders").await?;
    broker.publish("orders", Envelope::builder(Bytes::from_static(b"{}"))).await?;
    Ok(())
}

/// Refused, in words that tell neither the secret nor where it stands.
async fn refused(url: &str, secret: &str) -> String {
    let error = connect(url).await.expect_err("it must be refused");
    let text = format!("{error} {error:?}");
    assert!(!text.contains(secret), "{text}");
    text
}

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn a_token() {
    let server = PrivateServer::start(r#"authorization { token: "t0ps3cret" }"#).await;
    let address = server.address();
    works(&format!("nats://{address}?token=t0ps3cret")).await.unwrap();
    let text = refused(&format!("nats://{address}?token=wr0ng"), "wr0ng").await;
    assert!(text.contains(&address), "{text}");
    refused(&format!("nats://{address}"), "t0ps3cret").await;
}

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn user_and_password_with_characters_that_a_url_escapes() {
    let server = PrivateServer::start(r#"authorization { user: "ann@shop", password: "p/s:w?d" }"#).await;
    let address = server.address();
    works(&format!("nats://ann%40shop:p%2Fs:w%3Fd@{address}")).await.unwrap();
    refused(&format!("nats://ann%40shop:p%2Fs:w%3Fx@{address}"), "w?x").await;
}

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn an_nkey() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    let extra = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let server = PrivateServer::start(&extra).await;
    let address = server.address();
    works(&format!("nats://{address}?nkey={}", key.seed().unwrap())).await.unwrap();
    let wrong = other.seed().unwrap();
    refused(&format!("nats://{address}?nkey={wrong}"), &wrong).await;
    refused(&format!("nats://{address}?nkey=SUnonsense"), "SUnonsense").await;
}

/// A JSON web token as the server's operator mode takes it.
fn signed(by: &KeyPair, subject: &str, name: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let body = part(&json!({
        "jti": name, "iat": 1_700_000_000, "iss": by.public_key(), "name": name, "sub": subject, "nats": claims,
    }));
    let signature = by.sign(format!("{head}.{body}").as_bytes()).expect("the key signs");
    format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn a_credentials_file() {
    let (operator, system, account, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    // JetStream isn't for the system's own account
    let without_streams = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let of_system = json!({"type": "account", "version": 2, "limits": without_streams});
    let of_account = json!({"type": "account", "version": 2, "limits": limits});
    let of_operator = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
    let of_user = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let extra = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n  {}: {}\n  {}: {}\n}}",
        signed(&operator, &operator.public_key(), "operator", &of_operator),
        system.public_key(),
        system.public_key(),
        signed(&operator, &system.public_key(), "system", &of_system),
        account.public_key(),
        signed(&operator, &account.public_key(), "shop", &of_account),
    );
    let server = PrivateServer::start(&extra).await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, user: &KeyPair, seed: &str| {
        let jwt = signed(&account, &user.public_key(), "ann", &of_user);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let address = server.address();
    let right = write("right.creds", &user, &user.seed().unwrap());
    works(&format!("nats://{address}?creds={right}")).await.unwrap();
    // somebody else's seed under this user's token
    let stolen = KeyPair::new_user().seed().unwrap();
    let wrong = write("wrong.creds", &user, &stolen);
    refused(&format!("nats://{address}?creds={wrong}"), &stolen).await;
    let missing = folder.path().join("missing.creds").display().to_string();
    let text = refused(&format!("nats://{address}?creds={missing}"), &stolen).await;
    assert!(text.contains("missing.creds"), "it names the file: {text}");
}

fn test_variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by `cargo xtask test`"))
}

#[tokio::test]
#[ignore = "needs a NATS server: cargo xtask test --only nats"]
async fn tls_with_an_authority_of_our_own() {
    let (url, ca) = (test_variable("POSTRIDER_TEST_NATS_TLS_URL"), test_variable("POSTRIDER_TEST_TLS_CA"));
    let tenant = format!("tls-{:x}", Env::system().random());
    works(&format!("{url}?tls_ca={ca}&tenant={tenant}")).await.unwrap();
    // and with a certificate to show
    let (cert, key) = (test_variable("POSTRIDER_TEST_TLS_CERT"), test_variable("POSTRIDER_TEST_TLS_KEY"));
    works(&format!("{url}?tls_ca={ca}&tls_cert={cert}&tls_key={key}&tenant={tenant}")).await.unwrap();
    let text = refused(&format!("{url}?tenant={tenant}"), "s3cret").await;
    assert!(
        text.contains("tls_ca"),
        "an authority that nobody knows is not taken, and it says what to check: {text}"
    );
    refused(&format!("{url}?tls_ca={ca}.missing"), "s3cret").await;
    let half = connect(&format!("{url}?tls_ca={ca}&tls_cert={cert}")).await.expect_err("the key is missing");
    assert!(half.to_string().contains("tls_key"), "{half}");
}
