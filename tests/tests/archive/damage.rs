//! An archive that is not, to the byte, the one that was written is refused as a whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tests::{Service, replay_tool, store};

use super::{credits, exists, export, import, import_equal, order, temporary, text};

/// An archive in a folder that is damaged again and again.
struct Copy {
    whole: PathBuf,
    damaged: PathBuf,
    tried: u32,
}

impl Copy {
    /// The archive as it was written, once more.
    fn restore(&self) {
        let _ = fs::remove_dir_all(&self.damaged);
        fs::create_dir(&self.damaged).expect("a folder");
        for entry in fs::read_dir(&self.whole).expect("the archive").flatten() {
            fs::copy(entry.path(), self.damaged.join(entry.file_name())).expect("copied");
        }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.whole).expect("the archive").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("plain")).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.whole.join(name)).expect("a file of the archive")
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&self.read("manifest.json")).expect("JSON")
    }

    /// Damages the archive, and expects that it is refused and that nothing is written.
    fn refused(&mut self, what: &str, damage: impl FnOnce(&Path)) {
        self.restore();
        damage(&self.damaged);
        let into = store::sqlite();
        let (code, printed) = import(&into.url, &[&self.damaged]);
        assert_eq!((code, printed), (2, Value::Null), "{what} was not refused");
        assert!(!exists(&into), "{what}: something was written");
        self.tried += 1;
    }

    /// The same with a manifest that was made to agree with the files, as far as its maker could.
    fn refused_resealed(&mut self, what: &str, name: &str, bytes: &[u8], edit: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        let file = manifest["files"].as_array_mut().expect("a list").iter_mut().find(|file| file["file"] == name);
        let file = file.expect("the file is listed");
        file["bytes"] = json!(bytes.len());
        file["blake3"] = json!(blake3::hash(bytes).to_hex().as_str());
        edit(&mut manifest);
        seal(&mut manifest);
        self.refused(what, |folder| {
            fs::write(folder.join(name), bytes).expect("written");
            fs::write(folder.join("manifest.json"), format!("{manifest:#}\n")).expect("written");
        });
    }
}

/// Gives a manifest the hash of its content.
fn seal(manifest: &mut Value) {
    manifest.as_object_mut().expect("an object").remove("manifest_hash");
    manifest["manifest_hash"] = json!(blake3::hash(manifest.to_string().as_bytes()).to_hex().as_str());
}

/// Where each record of a partition's file ends, in its uncompressed bytes.
fn boundaries(records: &[u8]) -> Vec<usize> {
    let mut boundaries = vec![0];
    let mut at = 0;
    while at < records.len() {
        let length = u32::from_be_bytes(records[at..at + 4].try_into().expect("four bytes"));
        at += 4 + usize::try_from(length).expect("small") + 32;
        boundaries.push(at);
    }
    boundaries
}

fn compress(records: &[u8]) -> Vec<u8> {
    zstd::encode_all(records, 1).expect("compressed")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_archive_is_refused_and_nothing_is_written() {
    let (folder, source) = (temporary(), store::sqlite());
    let mut service = Service::start(&source.url, &[]);
    credits(&service, 0, 12, 3).await;
    order(&service, "ann").await;
    let early = folder.path().join("early");
    export(&source.url, &early, &[]);
    credits(&service, 12, 6, 3).await;
    service.terminate();
    let whole = folder.path().join("whole");
    export(&source.url, &whole, &[]);
    let mut copy = Copy { whole, damaged: folder.path().join("damaged"), tried: 0 };
    copy.restore();
    import_equal(&store::sqlite().url, &[&copy.damaged]);

    truncations(&mut copy);
    let truncated = copy.tried;
    flips(&mut copy);
    let flipped = copy.tried - truncated;
    edits(&mut copy);
    let edited = copy.tried - truncated - flipped;
    mixtures(&mut copy, &early);
    let mixed = copy.tried - truncated - flipped - edited;
    let tried = copy.tried;
    println!(
        "{tried} found of {tried} tried: {truncated} truncated, {flipped} flipped, {edited} edited, {mixed} mixed"
    );
    // On PostgreSQL, one of each that only shows while the events are written.
    let name = copy.files().into_iter().find(|name| name.starts_with("partition")).expect("a file");
    let mut records = zstd::decode_all(&*copy.read(&name)).expect("whole");
    let last = records.len() - 1;
    records[last] ^= 1;
    copy.refused_resealed("a hash", &name, &compress(&records), |_| {});
    let into = store::postgres();
    assert_eq!(import(&into.url, &[&copy.damaged]), (2, Value::Null));
    assert_eq!(super::sql::number(&into, "select count(*) from pg_class where relname = 'events'").await, 0);
    import_equal(&into.url, &[&copy.whole]);
    let (code, _) = replay_tool(&into.url, &["import", "--from", text(&folder.path().join("nowhere"))]);
    assert_eq!(code, 2);
}

/// Each file cut off: at every record, and at some bytes.
fn truncations(copy: &mut Copy) {
    for name in copy.files() {
        let bytes = copy.read(&name);
        for length in (0..bytes.len()).step_by(bytes.len() / 9 + 1) {
            copy.refused(&format!("{name} cut to {length} bytes"), |folder| {
                fs::write(folder.join(&name), &bytes[..length]).expect("written");
            });
        }
        if name == "manifest.json" {
            continue;
        }
        let records = zstd::decode_all(&*bytes).expect("whole");
        let ends = boundaries(&records);
        for (events, end) in ends.iter().enumerate().take(ends.len() - 1) {
            let cut = compress(&records[..*end]);
            let what = format!("{name} cut after {events} records");
            copy.refused(&what, |folder| fs::write(folder.join(&name), &cut).expect("written"));
            copy.refused_resealed(&what, &name, &cut, |_| {});
            let what = format!("{what}, with counts and head that agree");
            copy.refused_resealed(&what, &name, &cut, |manifest| shorten(manifest, &name, events));
        }
    }
}

/// Says of a file that it has so many events, wherever the manifest speaks of it.
fn shorten(manifest: &mut Value, name: &str, events: usize) {
    let files = manifest["files"].as_array_mut().expect("a list");
    let file = files.iter_mut().find(|file| file["file"] == name).expect("the file is listed");
    let partition = usize::try_from(file["partition"].as_u64().expect("a number")).expect("small");
    let missing = file["events"].as_u64().expect("a number") - events as u64;
    file["events"] = json!(events);
    if events == 0 {
        files.retain(|file| file["file"] != name);
    }
    manifest["events"] = json!(manifest["events"].as_u64().expect("a number") - missing);
    manifest["heads"][partition]["position"] = json!(events);
}

/// One bit after the other, here and there in every file.
fn flips(copy: &mut Copy) {
    for name in copy.files() {
        let bytes = copy.read(&name);
        let step = if name == "manifest.json" { 211 } else { 37 };
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            copy.refused(&format!("{name} with byte {at} flipped"), |folder| {
                fs::write(folder.join(&name), &flipped).expect("written");
            });
        }
        if name == "manifest.json" {
            continue;
        }
        // With hashes that agree: then the events themselves tell.
        let records = zstd::decode_all(&*bytes).expect("whole");
        for at in (0..records.len()).step_by(97) {
            let mut flipped = records.clone();
            flipped[at] ^= 1 << (at % 8);
            copy.refused_resealed(
                &format!("{name} with byte {at} of its records flipped"),
                &name,
                &compress(&flipped),
                |_| {},
            );
        }
    }
}

/// The manifest edited, with and without a hash that agrees.
fn edits(copy: &mut Copy) {
    let manifest = copy.manifest();
    let last = manifest["files"].as_array().map(Vec::len).expect("a list") - 1;
    let partition = manifest["files"][last]["partition"].as_u64().expect("a number");
    let head = format!("/heads/{partition}");
    let other_hash = json!("00".repeat(32));
    // A change of the digest alone is found at the end, by comparison: it is not among those that are refused before.
    let changes: [(&str, Value); 14] = [
        ("/format_version", json!(2)),
        ("/epoch", json!(0)),
        ("/events", json!(1)),
        (&format!("{head}/position"), json!(1)),
        (&format!("{head}/hash"), other_hash.clone()),
        (&format!("{head}/partition"), json!(64)),
        ("/heads/0/epoch", json!(9)),
        (&format!("/files/{last}/events"), json!(1)),
        (&format!("/files/{last}/first_position"), json!(2)),
        (&format!("/files/{last}/bytes"), json!(1)),
        (&format!("/files/{last}/blake3"), other_hash),
        (&format!("/files/{last}/file"), json!("../../etc/passwd")),
        (&format!("/files/{last}/partition"), json!((partition + 63) % 64)),
        ("/archive_id", json!("nobody")),
    ];
    for (place, value) in changes {
        let mut edited = manifest.clone();
        *edited.pointer_mut(place).expect("a field") = value;
        copy.refused(&format!("{place} edited"), |folder| {
            fs::write(folder.join("manifest.json"), format!("{edited:#}\n")).expect("written");
        });
        seal(&mut edited);
        copy.refused(&format!("{place} edited and sealed"), |folder| {
            fs::write(folder.join("manifest.json"), format!("{edited:#}\n")).expect("written");
        });
    }
    for place in ["/created_at", "/tool_version", "/source", "/accounts", "/digest"] {
        let mut edited = manifest.clone();
        *edited.pointer_mut(place).expect("a field") = match place {
            "/created_at" => json!("2020-01-01T00:00:00.000000Z"),
            "/source" => json!("postgres"),
            "/accounts" => json!(1),
            "/digest" => json!("00".repeat(32)),
            _ => json!("another"),
        };
        copy.refused(&format!("{place} edited"), |folder| {
            fs::write(folder.join("manifest.json"), format!("{edited:#}\n")).expect("written");
        });
    }
    let lines = |folder: &Path| fs::write(folder.join("manifest.json"), manifest.to_string()).expect("written");
    copy.refused("the manifest written in one line", lines);
    copy.refused("no manifest", |folder| fs::remove_file(folder.join("manifest.json")).expect("removed"));
}

/// Files of other archives, of other partitions, and none.
fn mixtures(copy: &mut Copy, early: &Path) {
    let files: Vec<_> = copy.files().into_iter().filter(|name| name.starts_with("partition")).collect();
    for name in &files {
        copy.refused(&format!("{name} missing"), |folder| fs::remove_file(folder.join(name)).expect("removed"));
        let other = early.join(name);
        if other.exists() && fs::read(&other).expect("read") != copy.read(name) {
            copy.refused(&format!("{name} of an earlier archive"), |folder| {
                fs::copy(&other, folder.join(name)).map(drop).expect("copied");
            });
            let bytes = fs::read(&other).expect("read");
            copy.refused_resealed(&format!("{name} of an earlier archive, resealed"), name, &bytes, |_| {});
        }
    }
    for pair in files.windows(2) {
        let (one, other) = (copy.read(&pair[0]), copy.read(&pair[1]));
        copy.refused(&format!("{} and {} exchanged", pair[0], pair[1]), |folder| {
            fs::write(folder.join(&pair[0]), &other).expect("written");
            fs::write(folder.join(&pair[1]), &one).expect("written");
        });
        copy.refused_resealed(&format!("{} in the place of {}", pair[1], pair[0]), &pair[0], &other, |_| {});
    }
    copy.refused("the manifest of an earlier archive", |folder| {
        fs::copy(early.join("manifest.json"), folder.join("manifest.json")).map(drop).expect("copied");
    });
}
