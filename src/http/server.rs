//! Listening and serving: connections within their number, heads within their size and time, peers within the ACL.
//!
//! Owns the life of a connection. Knows no route.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::tls::Tls;
use super::{Listen, Settings};
use crate::receive::answer;
use crate::telemetry::Metrics;

/// Why it does not listen.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An address cannot be used.
    #[error("http.listen: {address}: {reason}")]
    Listen {
        /// The address as it was set.
        address: String,
        /// What to do.
        reason: String,
    },
    /// A mask of the ACL is none.
    #[error("http.acl: `{0}` is no network; write an address or a network such as 192.0.2.0/24")]
    Acl(String),
    /// The certificate or the key cannot be used.
    #[error("{0}")]
    Tls(String),
}

/// What the connections of one server share.
struct Shared {
    router: Router,
    acl: Vec<IpNet>,
    tls: Option<Tls>,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    http: http1::Builder,
    head_timeout: Duration,
    graceful: GracefulShutdown,
}

/// The running server.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    listeners: Vec<JoinHandle<()>>,
}

/// Listens on every address of `http.listen`, or on none.
pub async fn start(settings: &Settings, router: Router, metrics: Arc<Metrics>) -> Result<Server, HttpError> {
    let tls = match settings.tls_cert.as_os_str().is_empty() {
        true => None,
        false => Some(Tls::open(settings)?),
    };
    let mut http = http1::Builder::new();
    // No pipeline_flush: it keeps an answer back while bytes of the client's are unread, and the answer that refuses them is lost.
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.head_timeout)
        .max_headers(settings.max_headers)
        // hyper takes no smaller buffer.
        .max_buf_size(usize::try_from(settings.max_head.as_u64()).unwrap_or(usize::MAX).max(8192));
    let shared = Arc::new(Shared {
        router,
        acl: settings.acl.iter().map(|mask| network(mask)).collect::<Result<_, _>>()?,
        tls,
        places: Arc::new(Semaphore::new(settings.max_connections)),
        metrics,
        http,
        head_timeout: settings.head_timeout,
        graceful: GracefulShutdown::new(),
    });
    let mut bound = Vec::new();
    for listen in settings.listeners() {
        let listener = bind(listen).await.map_err(|error| cannot_listen(listen.address, &error))?;
        bound.push((Listen { address: listener.0, ..listen }, listener.1));
    }
    let stop = CancellationToken::new();
    let addresses = bound.iter().map(|(listen, _)| listen.address).collect();
    let listeners = bound
        .into_iter()
        .map(|(listen, listener)| tokio::spawn(accept(listener, listen.tls, Arc::clone(&shared), stop.clone())))
        .collect();
    Ok(Server { addresses, shared, stop, listeners })
}

async fn bind(listen: Listen) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind(listen.address).await?;
    Ok((listener.local_addr()?, listener))
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> HttpError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "in use by another program; stop it, or set http.listen to another address".to_owned()
        }
        io::ErrorKind::PermissionDenied => "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
        io::ErrorKind::AddrNotAvailable => "no address of this machine".to_owned(),
        _ => error.to_string(),
    };
    HttpError::Listen { address: address.to_string(), reason }
}

fn network(mask: &str) -> Result<IpNet, HttpError> {
    let address = || mask.parse::<IpAddr>().map(IpNet::from);
    mask.parse().or_else(|_| address()).map_err(|_| HttpError::Acl(mask.to_owned()))
}

impl Server {
    /// The first address that it listens on; port 0 was replaced by the real one.
    pub fn address(&self) -> SocketAddr {
        self.addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// All addresses that it listens on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Rereads the certificate and key; an error leaves the old ones in use.
    pub fn reload_tls(&self) -> Result<(), HttpError> {
        self.shared.tls.as_ref().map_or(Ok(()), Tls::reload)
    }

    /// Accepts nothing more and finishes the requests that have begun, within a time.
    pub async fn drain(self, within: Duration) {
        self.stop.cancel();
        for listener in self.listeners {
            let _ = listener.await;
        }
        let Ok(shared) = Arc::try_unwrap(self.shared).map(|shared| shared.graceful) else { return };
        if tokio::time::timeout(within, shared.shutdown()).await.is_err() {
            tracing::warn!("some requests did not end in time; their connections are cut");
        }
    }
}

async fn accept(listener: TcpListener, tls: bool, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            place = Arc::clone(&shared.places).acquire_owned() => place,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = serve(stream, peer, tls, &shared, stop.clone());
                shared.metrics.connections.inc();
                let metrics = Arc::clone(&shared.metrics);
                tokio::spawn(async move {
                    connection.await;
                    metrics.connections.dec();
                    drop(place);
                });
            }
            Err(error) => {
                // Most often too many open files: accepting again at once would only spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What becomes of one connection. Holds no `Shared`, so that a drain can tell when the listeners are gone.
fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: bool,
    shared: &Arc<Shared>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let allowed = shared.acl.iter().any(|net| net.contains(&peer.ip().to_canonical()) || net.contains(&peer.ip()));
    let acceptor = shared.tls.as_ref().filter(|_| tls).map(Tls::acceptor);
    let (http, watcher) = (shared.http.clone(), shared.graceful.watcher());
    let (router, metrics, patience) = (shared.router.clone(), Arc::clone(&shared.metrics), shared.head_timeout);
    async move {
        let _ = stream.set_nodelay(true);
        if !allowed {
            drop(watcher);
            metrics.refused.with_label_values(&["acl"]).inc();
            tracing::debug!(%peer, "not in http.acl");
            if acceptor.is_none() {
                let _ = tokio::time::timeout(patience, refuse(stream, peer)).await;
            }
            return;
        }
        let Some(acceptor) = acceptor else { return speak(stream, peer, router, http, watcher).await };
        // No request has begun, so a drain waits for no handshake.
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = tokio::time::timeout(patience, acceptor.accept(stream)) => accepted,
        };
        match accepted {
            Ok(Ok(stream)) => speak(stream, peer, router, http, watcher).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
            Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
        }
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    router: Router,
    http: http1::Builder,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        old_spelling(&mut request);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = AssertUnwindSafe(router.clone().oneshot(request)).catch_unwind();
        async move {
            Ok::<_, Infallible>(
                answer.await.map_or_else(|_| fault(), |answer| answer.unwrap_or_else(|never| match never {})),
            )
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, %error, "a connection ended in the middle");
    }
}

/// `/?command=NAME` is the old spelling of `/command/NAME`. A POST of a report has a route of its own.
fn old_spelling(request: &mut hyper::Request<axum::body::Body>) {
    if request.uri().path() != "/" {
        return;
    }
    let query = request.uri().query().unwrap_or_default();
    let name = query.split('&').find_map(|pair| pair.strip_prefix("command="));
    let has_a_route = request.method() == hyper::Method::POST && matches!(name, Some("report" | "allow"));
    if let Some(uri) = name.filter(|_| !has_a_route).and_then(|name| format!("/command/{name}").parse().ok()) {
        *request.uri_mut() = uri;
    }
}

fn fault() -> Response {
    tracing::error!("a request's handler panicked; this is a fault of the program");
    answer::failure(StatusCode::INTERNAL_SERVER_ERROR, "a fault of this program; see its log")
}

async fn refuse(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let ip = peer.ip().to_canonical();
    let body =
        serde_json::json!({ "status": "failure", "reason": "Source IP Address not in ACL", "ip": ip }).to_string();
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection before the answer is read.
    let mut rest = [0; 4096];
    while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await? > 0 {}
    Ok(())
}
