//! What a subscriber makes of the stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::StreamExt;
use serde_json::Value;
use tests::Service;

/// The messages of the stream, in order.
pub(crate) struct Messages {
    /// Events with the sequences that they have.
    pub(crate) events: Vec<(u64, Value)>,
    pub(crate) restored: Vec<Value>,
}

impl Messages {
    pub(crate) async fn read(nats_url: &str) -> Self {
        let client = async_nats::connect(nats_url).await.expect("NATS is there");
        let stream = async_nats::jetstream::new(client).get_stream("CREDIT").await.expect("the stream is there");
        let last = stream.get_info().await.expect("its state").state.last_sequence;
        let stream = &stream;
        let messages: Vec<_> = futures::stream::iter(1..=last)
            .map(|sequence| async move { stream.get_raw_message(sequence).await.ok() })
            .buffered(64)
            .collect()
            .await;
        let mut read = Self { events: Vec::new(), restored: Vec::new() };
        for message in messages.into_iter().flatten() {
            let payload: Value = serde_json::from_slice(&message.payload).expect("JSON");
            if &*message.subject == "credit.log.restored" {
                read.restored.push(payload);
            } else {
                read.events.push((message.sequence, payload));
            }
        }
        read
    }

    /// The rule that the contract gives subscribers.
    fn is_void(&self, event: &Value) -> bool {
        let number = |value: &Value, field: &str| value[field].as_u64().expect("a number");
        self.restored.iter().any(|restored| {
            let heads = restored["heads"].as_array().expect("a list");
            let head = heads.iter().find(|head| head["partition"] == event["partition"]).expect("every partition");
            number(event, "epoch") < number(restored, "epoch") && number(event, "position") > number(head, "position")
        })
    }

    pub(crate) fn void_count(&self) -> usize {
        self.events.iter().filter(|(_, event)| self.is_void(event)).count()
    }

    /// Valid events, each once and in order, are exactly the log.
    pub(crate) async fn valid_ones_are_the_log_of(&self, service: &Service) {
        let mut valid: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
        for (_, event) in self.events.iter().filter(|(_, event)| !self.is_void(event)) {
            valid.entry(event["partition"].as_u64().expect("a number")).or_default().push(event);
        }
        for partition in 0..64 {
            let told = valid.remove(&partition).unwrap_or_default();
            let mut after = 0;
            loop {
                let page =
                    service.get(&format!("/v1/events?partition={partition}&after={after}&limit=500")).await.expect(200);
                let items = page["items"].as_array().expect("a list");
                if items.is_empty() {
                    break;
                }
                for item in items {
                    assert_eq!(told.get(after).copied(), Some(item), "partition {partition} after {after}");
                    after += 1;
                }
            }
            assert_eq!(told.len(), after, "partition {partition}: more is told than happened");
        }
    }

    /// Takes events of batches from the stream: the event at an index of a batch. Gives their partitions and positions.
    pub(crate) async fn lose(&self, nats_url: &str, which: &[(u64, u64)]) -> BTreeSet<(u64, u64)> {
        let client = async_nats::connect(nats_url).await.expect("NATS is there");
        let stream = async_nats::jetstream::new(client).get_stream("CREDIT").await.expect("the stream is there");
        let mut lost = BTreeSet::new();
        for (batch, index) in which {
            let id = format!("{batch}-{index}");
            let (sequence, event) =
                self.events.iter().find(|(_, event)| event["business_id"] == id.as_str()).expect("it was published");
            assert!(stream.delete_message(*sequence).await.expect("the server does it"));
            lost.insert(place(event));
        }
        lost
    }

    /// The newest position of a partition that the stream still tells of.
    pub(crate) fn newest_but(&self, partition: u64, holes: &BTreeSet<(u64, u64)>) -> u64 {
        let places = self.events.iter().map(|(_, event)| place(event));
        places.filter(|place| place.0 == partition && !holes.contains(place)).map(|place| place.1).max().unwrap_or(0)
    }
}

fn place(event: &Value) -> (u64, u64) {
    (event["partition"].as_u64().expect("a number"), event["position"].as_u64().expect("a number"))
}

/// The definition of what may come back: the longest beginnings of the partitions without a hole that hold every batch
/// wholly or not at all.
pub(crate) fn whole_batches(
    messages: &Messages,
    holes: &BTreeSet<(u64, u64)>,
    archived: &BTreeMap<u64, u64>,
) -> BTreeMap<u64, u64> {
    let mut batches: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, event) in &messages.events {
        let (partition, position) = place(event);
        let end = ends.entry(partition).or_insert(0);
        *end = (*end).max(position);
        let batch = event["batch_id"].as_str().expect("only batches");
        batches.entry(batch).or_default().push((partition, position));
        sizes.insert(batch, event["batch_size"].as_u64().expect("a number"));
    }
    for (partition, position) in holes {
        assert!(*position > archived.get(partition).copied().unwrap_or(0), "the archive has it");
        let end = ends.get_mut(partition).expect("it was published");
        *end = (*end).min(position - 1);
    }
    loop {
        let before = ends.clone();
        for (batch, members) in &batches {
            let is_cut = members.len() as u64 != sizes[batch];
            if is_cut || members.iter().any(|(partition, position)| *position > ends[partition]) {
                for (partition, position) in members {
                    let end = ends.get_mut(partition).expect("it was published");
                    *end = (*end).min(position - 1);
                }
            }
        }
        if ends == before {
            return ends;
        }
    }
}
