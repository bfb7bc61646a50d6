//! RabbitMQ: the bare lapin consumer that acks in batches, and the program.

use std::time::Instant;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use super::support::rabbitmq::{self, Rabbit};
use super::*;

const QUEUE: &str = "speed";
/// Published and not confirmed at once.
const AT_ONCE_UNCONFIRMED: usize = 1000;
const ACK_EVERY: usize = 100;

async fn channel(rabbit: &Rabbit) -> (Connection, Channel) {
    let connection = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn fill(rabbit: &Rabbit, reports: impl Iterator<Item = (String, String)>) {
    let (_connection, channel) = channel(rabbit).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut unconfirmed = Vec::new();
    for (login, report) in reports {
        let mut headers = FieldTable::default();
        headers.insert("trackalert-key".into(), AMQPValue::LongString(LongString::from(login)));
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let options = BasicPublishOptions::default();
        unconfirmed.push(
            channel.basic_publish("".into(), QUEUE.into(), options, report.as_bytes(), properties).await.unwrap(),
        );
        if unconfirmed.len() >= AT_ONCE_UNCONFIRMED {
            for confirm in unconfirmed.drain(..) {
                assert!(confirm.await.unwrap().is_ack());
            }
        }
    }
    for confirm in unconfirmed {
        assert!(confirm.await.unwrap().is_ack());
    }
}

/// What it costs at least: a consumer that decodes each report into the same struct and acks many at once.
async fn bare(rabbit: &Rabbit, total: usize) -> Figures {
    let limits = trackalert::config::Config::load_with(None, [], &[]).unwrap().receive.limits();
    let (connection, channel) = channel(rabbit).await;
    channel.basic_qos(1000, BasicQosOptions::default()).await.unwrap();
    let consume = channel.basic_consume(QUEUE.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consume.await.unwrap();
    let (mut first, mut taken) = (None, 0);
    while taken < total {
        let delivery = consumer.next().await.unwrap().unwrap();
        first.get_or_insert_with(|| (Instant::now(), own_usage().0));
        std::hint::black_box(trackalert::decode::decode(&delivery.data, &limits).unwrap());
        taken += 1;
        if taken % ACK_EVERY == 0 || taken == total {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    let (began, cpu) = first.unwrap();
    let (now, peak_mib) = own_usage();
    connection.close(200, "done".into()).await.unwrap();
    Figures { reports: total, seconds: began.elapsed().as_secs_f64(), cpu: now - cpu, peak_mib }
}

#[test]
fn from_rabbitmq_to_the_ack_beside_a_bare_consumer() {
    let Some(rabbit) = rabbitmq::shared() else { return };
    let total = trial::size(10_000, 200_000);
    let site = Site::new(&format!(
        "history.kind = \"none\"\n[queue]\nkind = \"amqp\"\nreports = \"{QUEUE}\"\nalerts = \"{QUEUE}-alerts\"\n[queue.amqp]\nurl = \"{}\"\n",
        rabbit.url()
    ));
    site.policy("speed", AT_ONCE);
    // The first start makes the queues.
    let mut command = site.command();
    command.args(["--roles", "receive"]);
    assert_eq!(site.start_command(command).terminate(), Some(0));
    // The library's own runtime is a thread; ours is the one that decodes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fill(rabbit, reports(total, 50_000)));
    print_head();
    let bare = runtime.block_on(bare(rabbit, total));
    bare.print("bare lapin consumer that decodes, acks by 100", None);
    runtime.block_on(fill(rabbit, reports(total, 50_000)));
    let at_once = drain(&site, total);
    at_once.print("trackalert, a policy that returns at once", Some(&bare));
    // 0.70 was measured: below, something has come into the way of every report. The small form is over before it
    // has warmed up.
    let floor = trial::size(0.0, 0.5);
    let ratio = at_once.rate() / bare.rate();
    assert!(ratio > floor, "{ratio:.2} of the rate of a bare consumer, which is not above {floor}");
}
