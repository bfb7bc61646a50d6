//! The kinds of queue that the trials run on, and what each owes to a test: its server, and the settings of an installation on it.

use super::kafka::{self, Broker};
use super::rabbitmq::{self, Rabbit};
use super::server::{Server, free_ports};

/// A kind of queue, and the server of this test binary that it is on.
#[derive(Clone, Copy)]
pub(crate) enum Driver {
    Embedded,
    Kafka(&'static Broker),
    Amqp(&'static Rabbit),
}

impl Driver {
    pub(crate) const fn embedded() -> Option<Self> {
        Some(Self::Embedded)
    }

    /// `None`: no broker can run here, which was said.
    pub(crate) fn kafka() -> Option<Self> {
        kafka::broker().map(Self::Kafka)
    }

    /// `None`: no broker can run here, which was said.
    pub(crate) fn amqp() -> Option<Self> {
        rabbitmq::shared().map(Self::Amqp)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Kafka(_) => "kafka",
            Self::Amqp(_) => "amqp",
        }
    }

    /// The server behind it.
    pub(crate) const fn server(self) -> Option<&'static Server> {
        match self {
            Self::Embedded => None,
            Self::Kafka(broker) => Some(&broker.server),
            Self::Amqp(rabbit) => Some(&rabbit.server),
        }
    }

    /// The port of its server.
    pub(crate) fn port(self) -> u16 {
        self.server().map_or(0, |server| server.port)
    }

    /// Where a proxy must listen whose clients are to reach the broker through it alone, and the port of the broker behind it.
    pub(crate) fn way_through_a_proxy(self) -> (u16, u16) {
        match self {
            Self::Embedded => panic!("nothing lies between the program and its embedded queue"),
            // It tells its clients to come to the port that it advertises.
            Self::Kafka(broker) => (broker.server.port + 3, broker.server.port + 2),
            Self::Amqp(rabbit) => (free_ports(1), rabbit.server.port),
        }
    }

    /// The settings (lines with whole keys) of installation `number` of this binary: queues and a group of its own, which all of its
    /// processes share. `port`: where the server is reached; a trial of the network puts its proxy there.
    pub(crate) fn settings(self, number: u32, port: u16) -> String {
        let kind = self.name();
        let mut settings = format!(
            "queue.kind = \"{kind}\"\nqueue.reports = \"reports-{number}\"\nqueue.alerts = \"alerts-{number}\"\n"
        );
        settings += &match self {
            Self::Embedded => String::new(),
            Self::Kafka(_) => format!(
                "queue.kafka.brokers = [\"127.0.0.1:{port}\"]\nqueue.kafka.group = \"group-{number}\"\n\
                 queue.kafka.create_topics = true\nqueue.kafka.partitions = 8\nqueue.kafka.replication = 1\n"
            ),
            Self::Amqp(_) => format!("queue.amqp.url = \"amqp://guest:guest@127.0.0.1:{port}/%2f\"\n"),
        };
        settings
    }
}

/// Makes a test of each case (`fn case(driver: Driver)`) for each driver, in a module of the driver's name: `kafka::` as an argument of
/// a trial runs its cases alone. One at a time: a case that kills the broker must not hit another one, and the machine may be small.
macro_rules! on_each_driver {
    ($($case:ident),* $(,)?) => {
        $crate::support::driver::on_drivers!(embedded: $($case),*);
        $crate::support::driver::on_brokers!($($case),*);
    };
}

/// The same for the cases that need a broker.
macro_rules! on_brokers {
    ($($case:ident),* $(,)?) => {
        #[cfg(feature = "kafka")]
        $crate::support::driver::on_drivers!(kafka: $($case),*);
        #[cfg(feature = "amqp")]
        $crate::support::driver::on_drivers!(amqp: $($case),*);
    };
}

macro_rules! on_drivers {
    ($driver:ident: $($case:ident),*) => {
        mod $driver {
            $( #[test]
            fn $case() {
                let _alone = $crate::support::driver::alone();
                let Some(driver) = $crate::support::driver::Driver::$driver() else { return };
                super::$case(driver);
            } )*
        }
    };
}

pub(crate) use {on_brokers, on_drivers, on_each_driver};

/// Holds all other cases of this binary back.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
