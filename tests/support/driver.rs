//! The kinds of queue that the trials run on, and what each owes to a test: its server, and the settings of an installation on it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

    /// How long a killed process keeps its partitions, where the driver has such: a shorter time only makes the trial shorter.
    pub(crate) const fn short_session(self) -> &'static str {
        match self {
            Self::Kafka(_) => "queue.kafka.session_timeout = \"6s\"",
            Self::Embedded | Self::Amqp(_) => "",
        }
    }

    /// The settings with which [`Self::loses_its_lanes_after`] holds. What is worked on is not waited for long, so that much of it is done
    /// when it belongs to the broker again.
    pub(crate) const fn lane_lost_soon(self) -> &'static str {
        match self {
            Self::Kafka(_) => "queue.kafka.session_timeout = \"6s\"\nqueue.kafka.revoke_timeout = \"500ms\"\n",
            Self::Embedded | Self::Amqp(_) => "",
        }
    }

    /// How long a connection must be gone until what was handed out over it is the broker's again.
    pub(crate) const fn loses_its_lanes_after(self) -> Duration {
        match self {
            Self::Kafka(_) => Duration::from_secs(8),
            Self::Embedded | Self::Amqp(_) => Duration::ZERO,
        }
    }

    /// Holds the other cases on the same server back, one of which may kill it. Those on other servers run beside it: most of what a
    /// case takes is waiting.
    pub(crate) fn alone(self) -> MutexGuard<'static, ()> {
        static ONE_OF_EACH: [Mutex<()>; 3] = [const { Mutex::new(()) }; 3];
        let [embedded, kafka, amqp] = &ONE_OF_EACH;
        let one = match self {
            Self::Embedded => embedded,
            Self::Kafka(_) => kafka,
            Self::Amqp(_) => amqp,
        };
        one.lock().unwrap_or_else(PoisonError::into_inner)
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
            Self::Amqp(rabbit) => format!(
                "queue.amqp.url = \"amqp://{}@127.0.0.1:{port}/%2f\"\nqueue.amqp.password_file = {:?}\n",
                rabbitmq::USER,
                rabbit.password_file()
            ),
        };
        settings
    }
}

/// Makes a test of each case (`fn case(driver: Driver)`) for each driver, `case::driver` by name: `kafka` as an argument of a trial runs
/// those on Kafka alone.
macro_rules! on_each_driver {
    ($($case:ident),* $(,)?) => {
        $( mod $case {
            $crate::support::driver::on_driver!($case embedded);
            #[cfg(feature = "kafka")]
            $crate::support::driver::on_driver!($case kafka);
            #[cfg(feature = "amqp")]
            $crate::support::driver::on_driver!($case amqp);
        } )*
    };
}

/// The same for the cases for which one driver is enough, or that need the order of the queue inside.
macro_rules! on_embedded {
    ($($case:ident),* $(,)?) => {
        $( mod $case {
            $crate::support::driver::on_driver!($case embedded);
        } )*
    };
}

/// The same for the cases that need a broker.
macro_rules! on_brokers {
    ($($case:ident),* $(,)?) => {
        $( mod $case {
            #[cfg(feature = "kafka")]
            $crate::support::driver::on_driver!($case kafka);
            #[cfg(feature = "amqp")]
            $crate::support::driver::on_driver!($case amqp);
        } )*
    };
}

macro_rules! on_driver {
    ($case:ident $driver:ident) => {
        #[test]
        fn $driver() {
            let Some(driver) = $crate::support::driver::Driver::$driver() else { return };
            let _alone = driver.alone();
            super::$case(driver);
        }
    };
}

pub(crate) use {on_brokers, on_driver, on_each_driver, on_embedded};
