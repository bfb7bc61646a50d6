//! Servers that policies ask: they answer as the test says, hold an answer back until it says so, and remember what was asked.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// Empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What to answer.
pub(crate) struct Page {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Page {
    pub(crate) fn of(body: Vec<u8>) -> Self {
        Self { status: 200, headers: Vec::new(), body }
    }

    pub(crate) fn json(text: &str) -> Self {
        Self::of(text.as_bytes().to_vec()).header("Content-Type", "application/json")
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::of(Vec::new()) }
    }

    pub(crate) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Answer = Arc<dyn Fn(Seen) -> Page + Send + Sync>;

/// A server on a port of its own. It ends with the test.
pub(crate) struct Server {
    scheme: &'static str,
    address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    answer: Answer,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    arrived: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

/// Holds the answers of a server back.
pub(crate) struct Gate {
    wanted: usize,
    state: Arc<State>,
}

impl Gate {
    /// Resolves when so many requests have come.
    pub(crate) async fn reached(&self) {
        self.state.arrived.subscribe().wait_for(|arrived| *arrived >= self.wanted).await.unwrap();
    }

    pub(crate) fn open(&self) {
        self.state.open.send_replace(true);
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(Seen) -> Page + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(answer), true, None).await
    }

    /// One that answers nobody before `wanted` requests have come and the gate is opened.
    pub(crate) async fn gated(wanted: usize, answer: impl Fn(Seen) -> Page + Send + Sync + 'static) -> (Self, Gate) {
        let server = Self::listen(Arc::new(answer), false, None).await;
        let state = Arc::clone(&server.state);
        (server, Gate { wanted, state })
    }

    /// One with TLS; the authority that signed its certificate is in `ca.pem` of the folder.
    pub(crate) async fn start_tls(folder: &Path, answer: impl Fn(Seen) -> Page + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(answer), true, Some(certified(folder, false))).await
    }

    /// The same, and it speaks only to who has a certificate of this authority: `client.pem`, with `client.key`.
    pub(crate) async fn start_mutual_tls(folder: &Path, answer: impl Fn(Seen) -> Page + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(answer), true, Some(certified(folder, true))).await
    }

    async fn listen(answer: Answer, open: bool, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, open) = (watch::Sender::new(0), watch::Sender::new(open));
        let (seen, connections) = (Mutex::default(), AtomicUsize::new(0));
        let state = Arc::new(State { answer, seen, connections, arrived, open });
        let shared = Arc::clone(&state);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                        None => serve(stream, state).await,
                    }
                });
            }
        });
        Self { scheme, address, state, task: task.abort_handle() }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            let (head, body) = request.into_parts();
            let headers = head.headers.iter().map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            });
            let seen = Seen {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                headers: headers.collect(),
                body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
            };
            state.seen.lock().unwrap().push(seen.clone());
            state.arrived.send_modify(|arrived| *arrived += 1);
            let _ = state.open.subscribe().wait_for(|open| *open).await;
            let page = (state.answer)(seen);
            let mut answer = hyper::Response::builder().status(page.status);
            for (name, value) in page.headers {
                answer = answer.header(name, value);
            }
            Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(page.body))).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server for thousands at once: it answers each request after a time with the same page, and remembers only how many it had.
pub(crate) struct Slow {
    address: SocketAddr,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Slow {
    pub(crate) async fn start(wait: Duration, json: &'static str) -> Self {
        Self::held(0, wait, json).await
    }

    /// One that answers nobody before so many have waited at once, however slowly they come.
    pub(crate) async fn held(until: usize, wait: Duration, json: &'static str) -> Self {
        use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
        // A connection each, for ten thousand at once.
        let (_, most) = getrlimit(RLIMIT_NOFILE).unwrap();
        setrlimit(RLIMIT_NOFILE, most, most).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&now), Arc::clone(&most), Arc::new(watch::Sender::new(until == 0)));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let counts = counts.clone();
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let (now, most, open) = counts.clone();
                    async move {
                        let waits = Waits::begin(now, &most);
                        let _ = request.into_body().collect().await;
                        if waits.0.load(Ordering::Relaxed) >= until {
                            open.send_if_modified(|open| !std::mem::replace(open, true));
                        }
                        let _ = open.subscribe().wait_for(|open| *open).await;
                        tokio::time::sleep(wait).await;
                        drop(waits);
                        let answer = hyper::Response::builder().header("content-type", "application/json");
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from_static(json.as_bytes()))).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, now, most, task: task.abort_handle() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Requests that wait for their answer.
    pub(crate) fn waiting(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// The most that waited at once since this was asked last.
    pub(crate) fn most(&self) -> usize {
        self.most.swap(0, Ordering::Relaxed)
    }
}

/// A request that waits, however it ends.
struct Waits(Arc<AtomicUsize>);

impl Waits {
    fn begin(now: Arc<AtomicUsize>, most: &AtomicUsize) -> Self {
        most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(now)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends these bytes to whoever connects, whatever is asked. `drips`: then a byte now and then as one chunk, for ever; else it closes.
pub(crate) async fn raw(bytes: Vec<u8>, drips: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&bytes).await;
                while drips && stream.write_all(b"1\r\nx\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
    });
    address
}

fn certified(folder: &Path, asks: bool) -> tokio_rustls::TlsAcceptor {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = if asks {
        let own = KeyPair::generate().unwrap();
        let client = CertificateParams::new(vec!["client".to_owned()]).unwrap().signed_by(&own, &authority).unwrap();
        std::fs::write(folder.join("client.pem"), client.pem()).unwrap();
        std::fs::write(folder.join("client.key"), own.serialize_pem()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier)
    } else {
        rustls::ServerConfig::builder().with_no_client_auth()
    };
    let config = config.with_single_cert(vec![leaf.der().clone()], key).unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}
