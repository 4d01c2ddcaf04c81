use ledger_core::{chain, Partition, Position};
use ledger_store::Database;
use std::sync::{Arc, Mutex};
#[tokio::main]
async fn main() {
    let mut a = std::env::args().skip(1);
    let url = a.next().unwrap(); let mode = a.next().unwrap(); let workers: usize = a.next().unwrap().parse().unwrap();
    let db = Database::open(&url).await.unwrap();
    let heads = db.heads().await.unwrap();
    let t = std::time::Instant::now();
    let parts = Arc::new(Mutex::new(Partition::all()));
    let mut js = vec![];
    for _ in 0..workers {
        let (db, parts, mode) = (db.clone(), parts.clone(), mode.clone());
        js.push(tokio::spawn(async move {
            let mut n = 0u64;
            loop {
                let Some(p) = ({ let x = parts.lock().unwrap().next(); x }) else { return n };
                let head = heads[p.index()];
                let mut prev = ledger_core::Hash::ZERO;
                if mode == "old" {
                    let mut after = Position::ZERO;
                    while after < head.position {
                        let rows = db.rows_after(p, after, 5000).await.unwrap();
                        for r in rows { let e = r.unwrap(); after = e.position; n += 1; }
                    }
                    continue;
                }
                let mut scan = db.scan(p, Position::ZERO, head.position);
                loop {
                    let rows = scan.next().await.unwrap();
                    if rows.is_empty() { break }
                    for r in rows { let e = r.unwrap(); n += 1;
                        if mode == "hash" { let h = chain::link(&prev, &e); assert!(h == e.hash); prev = h; }
                    }
                }
            }
        }));
    }
    let mut n = 0; for j in js { n += j.await.unwrap(); }
    let s = t.elapsed().as_secs_f64();
    println!("{mode} x{workers}: {n} events {s:.2}s {:.0}/s", n as f64 / s);
}
