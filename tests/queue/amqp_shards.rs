//! Order over several processes: shards, who has which, and what comes twice when they move.

#![allow(clippy::print_stdout, reason = "who has what after each change is what one reads first when it fails")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use super::*;

/// Address, name of the queue and file of a child that takes.
const CHILD: [&str; 3] = ["TRACKALERT_TEST_SHARDS_URL", "TRACKALERT_TEST_SHARDS_NAME", "TRACKALERT_TEST_SHARDS_FILE"];
const SHARDS: u32 = 8;
const LOGINS: u32 = 40;
/// What a change may take until the shards are spread again.
const SPREAD: Duration = Duration::from_secs(60);

/// Takes from the shards, writes down what it takes in the moment it does, and acks in any order; a SIGTERM drains it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of order_holds_while_processes_come_go_and_die"]
async fn child_that_takes_from_shards() {
    let [Ok(url), Ok(name), Ok(file)] = CHILD.map(std::env::var) else { return };
    let mut settings = settings(&url);
    settings.shards = SHARDS;
    let open = move || AmqpQueue::open(&name, "", &settings, BACKOFF, 10_000, Arc::new(Metrics::new()), "reports");
    let queue = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 2000, bytes: 1 << 24 }, BACKOFF).unwrap();
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    let mut hand: Vec<Delivery> = Vec::new();
    let mut ending = false;
    loop {
        tokio::select! {
            next = subscription.deliveries.recv() => {
                let Some(delivery) = next else { break };
                file.write_all(format!("{} {}\n", delivery.message.key, number(&delivery)).as_bytes()).unwrap();
                hand.push(delivery);
            }
            () = tokio::time::sleep(Duration::from_millis(5)), if !hand.is_empty() => {
                hand.shuffle(&mut rand::rng());
                hand.drain(..).for_each(|delivery| delivery.token.ack());
            }
            _ = stop.recv(), if !ending => {
                ending = true;
                subscription.pause.send(true).unwrap();
            }
            () = tokio::time::sleep(Duration::from_millis(50)), if ending && hand.is_empty() => break,
        }
        if hand.len() >= 30 {
            hand.shuffle(&mut rand::rng());
            hand.drain(..).for_each(|delivery| delivery.token.ack());
        }
    }
    end(subscription).await;
}

struct Processes<'a> {
    driver: &'a Amqp,
    file: PathBuf,
    running: Vec<Child>,
}

impl Drop for Processes<'_> {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Processes<'_> {
    fn start(&mut self) {
        let values = [self.driver.rabbit.url(), self.driver.name.clone(), self.file.display().to_string()];
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "amqp::shards::child_that_takes_from_shards", "--ignored", "--nocapture"])
            .envs(CHILD.into_iter().zip(values))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.running.push(child);
    }

    /// How many shards each process is active on, by the broker's own account.
    fn spread(&self) -> Vec<u32> {
        let mut has = BTreeMap::<String, u32>::new();
        for shard in 0..SHARDS {
            let asked = self.driver.asked(&format!("{}-{shard}", self.driver.name));
            for consumer in asked["consumer_details"].as_array().into_iter().flatten() {
                let tag = consumer["consumer_tag"].as_str().unwrap_or_default();
                let member = tag.rsplit_once('-').map_or(tag, |(member, _)| member).to_owned();
                *has.entry(member).or_default() += u32::from(consumer["active"] == true);
            }
        }
        has.into_values().filter(|active| *active > 0).collect()
    }

    /// Waits until all shards are taken and none has more than its share, at three looks in a row.
    async fn until_spread(&self, what: &str) {
        let (began, replicas) = (Instant::now(), self.running.len());
        let most = SHARDS.div_ceil(u32::try_from(replicas).unwrap()) + 1;
        // When each of the last looks was, as long as it was good.
        let mut good: Vec<Duration> = Vec::new();
        let spread = loop {
            let spread = self.spread();
            let fair = spread.len() == replicas
                && spread.iter().sum::<u32>() == SHARDS
                && spread.iter().all(|has| *has <= most);
            if fair {
                good.push(began.elapsed())
            } else {
                good.clear()
            }
            if good.len() == 3 {
                break spread;
            }
            assert!(began.elapsed() < SPREAD, "{what}: after {SPREAD:?} the shards are {spread:?}");
            tokio::time::sleep(Duration::from_millis(if fair { 700 } else { 100 })).await;
        };
        println!("{what}: {spread:?} after {:.1} s, bound {most}", good[0].as_secs_f64());
    }
}

fn numbered_by_login(round: u32) -> Vec<Message> {
    (0..LOGINS).map(|login| Message::new(format!("login{login}"), round.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_holds_while_processes_come_go_and_die() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.shards = SHARDS;
    let queue = driver.open().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taken");
    std::fs::write(&file, "").unwrap();
    let publisher = queue.publisher();
    let rounds = Arc::new(AtomicU32::new(0));
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (counted, end) = (Arc::clone(&rounds), Arc::clone(&ended));
    let publishing = tokio::spawn(async move {
        while !end.load(Ordering::Relaxed) {
            publisher.publish(numbered_by_login(counted.load(Ordering::Relaxed))).await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut processes = Processes { driver: &driver, file: file.clone(), running: Vec::new() };
    processes.start();
    processes.until_spread("1 process").await;
    processes.start();
    processes.start();
    processes.until_spread("3 processes, 2 of them new").await;
    processes.start();
    processes.until_spread("4 processes, 1 of them new").await;
    // Lines are whole in this file, and what comes after a SIGTERM must not come twice either.
    for left in [3, 2] {
        let mut child = processes.running.remove(0);
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "it did not drain");
        processes.until_spread(&format!("{left} processes, 1 ended by SIGTERM")).await;
    }
    let before = std::fs::read_to_string(&file).unwrap();
    let mut child = processes.running.remove(0);
    child.kill().unwrap();
    child.wait().unwrap();
    processes.until_spread("1 process, 1 ended by SIGKILL").await;
    ended.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
    let rounds = rounds.load(Ordering::Relaxed);
    // Not the depth: what the last process has in hand is out of its queue.
    let all = (rounds * LOGINS) as usize;
    let handled = || std::fs::read_to_string(&file).unwrap().lines().collect::<BTreeSet<_>>().len() >= all;
    until("the rest is not handled", async || handled()).await;
    drop(processes);

    let after = std::fs::read_to_string(&file).unwrap();
    // The last line before the kill may be cut in the middle.
    let clean = before.rfind('\n').map_or(0, |at| at + 1);
    let (mut last, mut again, mut replayed) = (BTreeMap::new(), 0, BTreeMap::<&str, i64>::new());
    for (line, at) in after.lines().scan(0, |at, line| {
        let from = *at;
        *at += line.len() + 1;
        Some((line, from))
    }) {
        let (login, number) = line.split_once(' ').unwrap();
        let number: i64 = number.parse().unwrap();
        let highest = last.entry(login).or_insert(-1_i64);
        if number == *highest + 1 {
            *highest = number;
            continue;
        }
        assert!(number <= *highest, "{login}: {number} overtook what follows {highest}");
        assert!(at >= clean, "{login}: {number} came again after {highest}, and nobody was killed");
        let replay = replayed.entry(login).or_insert(-1);
        assert!(number > *replay, "{login}: {number} came again twice");
        *replay = number;
        again += 1;
    }
    println!("{} reports taken, {again} of them again after the kill", after.lines().count());
    assert!(
        last.len() == LOGINS as usize && last.values().all(|last| *last == i64::from(rounds) - 1),
        "some are missing"
    );
}

/// As another program publishes, with the login for a routing key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_to_the_exchange_comes_by_one_shard_for_each_login() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.shards = 4;
    let queue = driver.open().await;
    for round in 0..2 {
        for login in 0..LOGINS {
            driver.publish_to(&driver.name, &format!("login{login}"), &(login * 2 + round).to_string());
        }
    }
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut lanes = BTreeMap::new();
    for delivery in take(&mut subscription, 2 * LOGINS as usize).await {
        let (login, lane) = (number(&delivery) / 2, delivery.token.tag().lane);
        let before = lanes.insert(login, (lane, number(&delivery)));
        assert!(before.is_none_or(|(first, earlier)| first == lane && earlier < number(&delivery)), "login{login}");
        delivery.token.ack();
    }
    assert_eq!(lanes.len(), LOGINS as usize);
    let used: BTreeSet<u32> = lanes.into_values().map(|(lane, _)| lane).collect();
    assert_eq!(used.len(), 4, "a shard gets nothing from the exchange");
    end(subscription).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_have_dead_letters_and_a_depth_and_none_is_forgotten() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.shards = 4;
    let queue = driver.open().await;
    let messages = || (0..200_u32).map(|n| Message::new(format!("login{n}"), n.to_string())).collect::<Vec<_>>();
    queue.publisher().publish(messages()).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().messages, 200);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let taken = take(&mut subscription, 200).await;
    let lanes: BTreeSet<u32> = taken.iter().map(|delivery| delivery.token.tag().lane).collect();
    assert_eq!(lanes, (0..4).collect());
    assert_eq!(queue.depth().await.unwrap().messages, 200);
    for delivery in taken {
        if number(&delivery) == 77 { delivery.token.reject(reason(&[])) } else { delivery.token.ack() }
    }
    until("the dead letter is missing", async || queue.depth().await.unwrap().dead == 1).await;
    until_open("the rest is not done", &*queue, 0).await;
    let letters = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap();
    assert!(queue.dead_letters().resend(letters[0].id.clone()).await.unwrap());
    let again = next(&mut subscription).await;
    assert_eq!(number(&again), 77);
    again.token.nack();
    let again = next(&mut subscription).await;
    assert_eq!((number(&again), again.redelivered), (77, 1));
    again.token.ack();
    end(subscription).await;
    assert_eq!(queue.depth().await.unwrap().messages, 0);

    queue.publisher().publish(messages()).await.unwrap();
    drop(queue);
    driver.settings.shards = 3;
    let fewer = driver.refused().await;
    assert!(fewer.contains(&format!("{}-3 is there", driver.name)), "{fewer}");
    driver.settings.shards = 0;
    let none = driver.refused().await;
    assert!(none.contains("of a time when queue.amqp.shards was set"), "{none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connection_of_shards_hands_out_again_in_order() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.shards = 3;
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..210)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let old = take(&mut subscription, 210).await;
    cut_source(&driver).await;
    let mut last = BTreeMap::new();
    for delivery in take(&mut subscription, 210).await {
        let before = last.insert(delivery.message.key.clone(), number(&delivery));
        assert!(before.is_none_or(|before| before < number(&delivery)), "{before:?} before {}", number(&delivery));
        delivery.token.ack();
    }
    drop(old);
    until_open("new acks were not taken", &*queue, 0).await;
    until("stale settlements were not counted", async || driver.metrics.stale_settlements.get() == 210).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_shards_keep_their_order_and_give_back_what_waits_for_long() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.shards = 2;
    driver.settings.hold = Duration::from_millis(500);
    let queue = driver.open().await;
    let one_login = |range: std::ops::Range<u32>| range.map(|n| Message::new("ann", n.to_string())).collect::<Vec<_>>();
    queue.publisher().publish(one_login(0..50)).await.unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 40, bytes: 1 << 20 }, BACKOFF).unwrap();
    let taken = take(&mut subscription, 10).await;
    let generation = taken[0].token.tag().generation;
    subscription.pause.send(true).unwrap();
    for delivery in taken {
        if number(&delivery) < 5 { delivery.token.ack() } else { delivery.token.nack() }
    }
    // All that it holds goes back with the channel, and comes in order when it goes on. What was on its way when it was paused, too.
    let mut left = 0;
    let other = driver.open().await;
    until("what waited for long was not given back", async || {
        while let Ok(delivery) = subscription.deliveries.try_recv() {
            drop(delivery);
            left += 1;
        }
        other.depth().await.unwrap().messages == 45
    })
    .await;
    subscription.pause.send(false).unwrap();
    let again = take(&mut subscription, 20).await;
    assert!(again.iter().map(number).eq(5..25), "{left} {:?}", again.iter().map(number).collect::<Vec<_>>());
    assert!(again[0].token.tag().generation > generation);
}

/// The broker's exchange forgets which shard it gave to whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_keeps_its_shard_over_a_restart_of_the_broker() {
    let Some(mut driver) = Amqp::start() else { return };
    let rabbit = tokio::task::spawn_blocking(Rabbit::start).await.unwrap().unwrap();
    driver.settings = Settings { shards: 16, start_timeout: Duration::from_secs(60), ..settings(&rabbit.url()) };
    let queue = driver.open().await;
    let publisher = queue.publisher();
    publisher.publish(numbered_by_login(0)).await.unwrap();
    let rabbit = tokio::task::spawn_blocking(move || rabbit.restart().map(|()| rabbit)).await.unwrap().unwrap();
    until("the broker takes nothing", async || publisher.publish(numbered_by_login(1)).await.is_ok()).await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut seen = BTreeMap::<String, BTreeSet<(u32, u32)>>::new();
    // A login may come more than twice: what is not confirmed is published again.
    while seen.values().filter(|rounds| rounds.iter().any(|(round, _)| *round == 1)).count() < LOGINS as usize
        || seen.values().any(|rounds| rounds.iter().all(|(round, _)| *round == 1))
    {
        let delivery = next(&mut subscription).await;
        let at = (number(&delivery), delivery.token.tag().lane);
        seen.entry(delivery.message.key.clone()).or_default().insert(at);
        delivery.token.ack();
    }
    for (login, rounds) in seen {
        assert!(rounds.iter().all(|(_, shard)| *shard == rounds.first().unwrap().1), "{login}: {rounds:?}");
    }
    end(subscription).await;
    tokio::task::spawn_blocking(move || rabbit.server.script("stop")).await.unwrap().unwrap();
}

/// As where a broker's disk is slow: the last acks of a shard that moves are given up. Whoever takes from it next waits already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_in_hand_of_a_shard_comes_first_though_its_queue_was_silent_when_it_moved() {
    use futures_util::StreamExt;
    use lapin::options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
    use lapin::types::FieldTable;
    const EACH: u32 = 20;
    const LATER: u32 = 5;
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    (driver.settings.shards, driver.settings.release_timeout) = (2, Duration::from_millis(10));
    let (queue, other) = (driver.open().await, driver.open().await);
    let connection =
        lapin::Connection::connect(&driver.rabbit.url(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let shards = [0, 1].map(|shard| format!("{}-{shard}", driver.name));
    let publish = async |numbers: std::ops::Range<u32>| {
        for (shard, number) in shards.iter().flat_map(|shard| numbers.clone().map(move |number| (shard, number))) {
            let (name, body) = (shard.as_str().into(), number.to_string());
            let options = BasicPublishOptions::default();
            channel.basic_publish("".into(), name, options, body.as_bytes(), Default::default()).await.unwrap();
        }
    };
    publish(0..EACH).await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let in_hand = take(&mut subscription, 2 * EACH as usize).await;
    // Where nothing was acked, nothing is waited for.
    let (done, _in_hand): (Vec<_>, Vec<_>) = in_hand.into_iter().partition(|one| number(one) == 0);
    done.into_iter().for_each(|one| one.token.ack());
    let mut next = futures_util::stream::SelectAll::new();
    // RabbitMQ 4 goes on with whoever has the most room.
    channel.basic_qos(u16::MAX, BasicQosOptions::default()).await.unwrap();
    for shard in &shards {
        let (name, options) = (shard.as_str().into(), BasicConsumeOptions::default());
        next.push(channel.basic_consume(name, shard.as_str().into(), options, FieldTable::default()).await.unwrap());
        driver.script("do-silence", shard).await;
    }
    publish(EACH..EACH + LATER).await;
    // One of the two goes to it.
    let _moved = other.subscribe(MANY, BACKOFF).unwrap();
    let shard = format!("\"{}-", driver.name);
    until("the last acks are waited for", async || logged(&[&shard, "the last acks"])).await;
    for shard in &shards {
        driver.script("do-wake", shard).await;
    }
    let body = |came: lapin::Result<lapin::message::Delivery>| String::from_utf8(came.unwrap().data).unwrap();
    let came =
        next.take((EACH + LATER - 1) as usize).map(|came| body(came).parse::<u32>().unwrap()).collect::<Vec<_>>();
    assert_eq!(timeout(DEADLINE, came).await.unwrap(), Vec::from_iter(1..EACH + LATER));
    connection.close(200, "done".into()).await.unwrap();
}
