#!/usr/bin/env bash
# Apache Kafka, one KRaft node (broker and controller) on loopback. With NODE_ID (2 or more) a further broker of the node that has its
# controller on CONTROLLER_PORT.
# Takes PORT, and PORT+1 for its controller. With ADVERTISED_PORT there is a second way in, PROXIED_PORT (PORT+2), whose clients are told
# to go to that port: where a proxy stands between them and the broker.
# With SECURE_DIR (broker.pem with key and certificate, ca.pem) it listens with TLS and SASL (PLAIN and SCRAM-SHA-512, for SASL_USER and
# SASL_PASSWORD) on PORT+2, and with TLS for clients with a certificate of ca.pem on PORT+3, whose name must be client. With PLAIN there
# is also the user nobody with the same password, who is allowed nothing.
NAME=kafka PORT=${PORT:-19092}
. "$(dirname "$0")/lib.sh"
VERSION=${KAFKA_VERSION:-4.4.0}
CONTROLLER_PORT=${CONTROLLER_PORT:-$((PORT + 1))}
NODE_ID=${NODE_ID:-1}
PROXIED_PORT=${PROXIED_PORT:-$((PORT + 2))}
LIBS=$OPT_DIR/kafka/$VERSION

do_install() {
  [ -e "$LIBS/.done" ] && return
  mvn_jars "$LIBS" "org.apache.kafka:kafka_2.13:$VERSION org.apache.logging.log4j:log4j-slf4j-impl:2.24.3 org.apache.logging.log4j:log4j-core:2.24.3"
  touch "$LIBS/.done"
}

# Its own log says it first; a log of the start before is overwritten.
do_ready() { grep -q 'Kafka Server started' "$LOG"; }

secure() {  # of two lines for one key the later one counts
  local at=127.0.0.1 module=org.apache.kafka.common.security
  cat <<P
listeners=PLAINTEXT://$at:$PORT,CONTROLLER://$at:$CONTROLLER_PORT,SASL_SSL://$at:$((PORT + 2)),SSL://$at:$((PORT + 3))
advertised.listeners=PLAINTEXT://$at:$PORT,SASL_SSL://$at:$((PORT + 2)),SSL://$at:$((PORT + 3))
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
ssl.keystore.type=PEM
ssl.keystore.location=$SECURE_DIR/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=$SECURE_DIR/ca.pem
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=$module.plain.PlainLoginModule required user_$SASL_USER="$SASL_PASSWORD" user_nobody="$SASL_PASSWORD";
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=$module.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:$SASL_USER;User:CN=client
P
}

do_launch() {
  local listen='' advertise='' roles=broker
  if [ "$NODE_ID" = 1 ]; then
    roles=broker,controller listen=,CONTROLLER://127.0.0.1:$CONTROLLER_PORT
  fi
  if [ -n "${ADVERTISED_PORT:-}" ]; then
    listen+=,PROXIED://127.0.0.1:$PROXIED_PORT advertise=,PROXIED://127.0.0.1:$ADVERTISED_PORT
  fi
  cat >"$DATA_DIR/server.properties" <<P
process.roles=$roles
node.id=$NODE_ID
controller.quorum.voters=1@127.0.0.1:$CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:$PORT$listen
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT$advertise
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs=$DATA_DIR/logs
num.partitions=3
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
log.segment.bytes=16777216
log.index.size.max.bytes=1048576
P
  [ -z "${SECURE_DIR:-}" ] || secure >>"$DATA_DIR/server.properties"
  cat >"$DATA_DIR/log4j2.properties" <<'P'
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=INFO
rootLogger.appenderRef.c.ref=C
P
  local run=(java $JAVA_FLAGS -Dlog4j2.configurationFile="$DATA_DIR/log4j2.properties" -cp "$LIBS/*")
  [ -e "$DATA_DIR/logs/meta.properties" ] ||
    "${run[@]}" kafka.tools.StorageTool format -c "$DATA_DIR/server.properties" -t "${CLUSTER_ID:-AAAAAAAAQACAAAAAAAAAAQ}" --ignore-formatted \
      ${SECURE_DIR:+--add-scram "SCRAM-SHA-512=[name=$SASL_USER,password=$SASL_PASSWORD]"}
  exec "${run[@]}" kafka.Kafka "$DATA_DIR/server.properties"
}
main "$@"
