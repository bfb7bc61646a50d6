//! The process that an operator's command talks to: the one that runs, or with `--offline` one that is started for the command.
//!
//! Either way the command speaks HTTP to it, so that there is one code path, and one owner of the data folder.

use super::client::Client;
use super::{Common, Failure, check};
use crate::app::App;
use crate::config::Roles;
use crate::telemetry;

/// What a process that is started for one command has otherwise than the configuration says: it must not take the port, and its log
/// must not fill the terminal.
const OFFLINE: [&str; 5] =
    ["http.listen=127.0.0.1:0", "http.tls_cert=", "http.tls_key=", "http.acl=127.0.0.0/8", "log.level=warn"];

/// See the module.
pub(super) struct Session {
    pub(super) client: Client,
    app: Option<App>,
}

impl Session {
    /// Opens it. With `offline`, roles of a process of its own.
    pub(super) async fn open(common: &Common, offline: Option<Roles>) -> Result<Self, Failure> {
        let Some(roles) = offline else {
            let config = common.load()?;
            return Ok(Self { client: Client::of(&config, None, &common.again())?, app: None });
        };
        let config = common.load_and(&OFFLINE)?;
        check::before_start(&config, roles)?;
        telemetry::init_log(&config.log).map_err(Failure::usage)?;
        let app = App::start(config.clone(), roles).await.map_err(|error| Failure::failed(error.to_string()))?;
        let client = Client::of(&config, Some(app.address()), &common.again())?;
        Ok(Self { client, app: Some(app) })
    }

    /// Ends what was started. What was asked for is durable before: the drain only lets go of the folder.
    pub(super) async fn close(self) {
        if let Some(app) = self.app {
            let _ = app.drain().await;
        }
    }

    /// Opens, does, closes.
    pub(super) fn with<T>(
        common: &Common,
        offline: Option<Roles>,
        work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        super::block_on(async {
            let session = Self::open(common, offline).await?;
            let result = work(&session.client).await;
            session.close().await;
            result
        })
    }
}
