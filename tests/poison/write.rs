//! Writes into the reports queue what nobody checked: as another program would that knows the broker and not our doors.

use super::support::driver::Driver;
use super::support::load::Rig;
use super::support::program::{Program, Site};

/// The program, with these bodies in its reports queue in this order. A broker gets them from a client of its own while the program
/// runs; into the embedded queue nobody else can write, and so they are there before its start.
pub(crate) fn while_it_runs(rig: &Rig, site: &Site, bodies: Vec<Vec<u8>>) -> Program {
    let reports = rig.reports();
    match rig.driver {
        Driver::Embedded => {
            embedded(rig, site, &reports, bodies);
            site.start()
        }
        #[cfg(feature = "kafka")]
        Driver::Kafka(broker) => {
            let program = site.start();
            kafka(&broker.address, &reports, &bodies);
            program
        }
        #[cfg(feature = "amqp")]
        Driver::Amqp(rabbit) => {
            let program = site.start();
            rig.runtime.block_on(amqp(&rabbit.url(), &reports, &bodies));
            program
        }
        #[allow(unreachable_patterns, reason = "without its feature, a driver is never asked for")]
        _ => panic!("no client of this broker"),
    }
}

fn embedded(rig: &Rig, site: &Site, name: &str, bodies: Vec<Vec<u8>>) {
    use trackalert::config::Config;
    use trackalert::queue::embedded::EmbeddedQueue;
    use trackalert::queue::{Message, Queue};
    let config = Config::load_with(Some(&site.config()), [], &[]).unwrap();
    let store = trackalert::store::Store::open(&config.data_dir, 8 << 20).unwrap();
    let queue =
        EmbeddedQueue::open(&store, name, &config.queue.embedded, 1 << 20, std::sync::Arc::default(), "reports")
            .unwrap();
    let messages = bodies.into_iter().map(|body| Message::new("", body)).collect();
    rig.runtime.block_on(queue.publisher().publish(messages)).unwrap();
}

#[cfg(feature = "kafka")]
fn kafka(address: &str, topic: &str, bodies: &[Vec<u8>]) {
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", address).create().unwrap();
    for body in bodies {
        producer.send(BaseRecord::<(), _>::to(topic).payload(body)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

#[cfg(feature = "amqp")]
async fn amqp(url: &str, queue: &str, bodies: &[Vec<u8>]) {
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
    use lapin::{BasicProperties, Connection, ConnectionProperties};
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut confirms = Vec::new();
    for body in bodies {
        let properties = BasicProperties::default();
        confirms.push(channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap());
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
    connection.close(200, "done".into()).await.unwrap();
}
