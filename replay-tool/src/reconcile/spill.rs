//! Orders laid down by partition, in files that have no name: they are gone with the process, however it ends.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use foldhash::HashSet;
use ledger_core::{Account, PARTITIONS, Partition};

use super::order::{Order, Stage};
use crate::context::Failure;

/// Bytes that are gathered for one file before they are written.
const BUFFER: usize = 32 * 1024;
/// Stands for a number that an order does not have; none is as large.
const NONE: u64 = u64::MAX;

/// The files while they are written.
#[derive(Debug)]
pub(crate) struct Spilling {
    files: Vec<BufWriter<File>>,
    orders: u64,
    outside: u64,
}

/// The files once all orders are in them.
#[derive(Debug)]
pub(crate) struct Spill {
    files: Vec<File>,
    /// How many orders there are.
    pub(crate) orders: u64,
    /// How many of them lie outside the time that is looked at.
    pub(crate) outside: u64,
}

impl Spilling {
    pub(crate) fn start() -> Result<Self, Failure> {
        let file = || Ok(BufWriter::with_capacity(BUFFER, tempfile::tempfile()?));
        let files = (0..PARTITIONS).map(|_| file()).collect::<io::Result<_>>().map_err(|error| failed(&error))?;
        Ok(Self { files, orders: 0, outside: 0 })
    }

    pub(crate) fn add(&mut self, order: &Order) -> Result<(), Failure> {
        self.orders += 1;
        self.outside += u64::from(!order.judged);
        write(&mut self.files[order.account.partition().index()], order).map_err(|error| failed(&error))
    }

    pub(crate) fn finish(self) -> Result<Spill, Failure> {
        let files = self.files.into_iter().map(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
        let files = files.collect::<io::Result<_>>().map_err(|error| failed(&error))?;
        Ok(Spill { files, orders: self.orders, outside: self.outside })
    }
}

impl Spill {
    /// Gives every order of a partition, in the order of their lines.
    pub(crate) fn each(&self, partition: Partition, take: &mut dyn FnMut(Order)) -> Result<(), Failure> {
        self.read(partition, take).map_err(|error| failed(&error))
    }

    fn read(&self, partition: Partition, take: &mut dyn FnMut(Order)) -> io::Result<()> {
        let mut file = &self.files[partition.index()];
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(BUFFER, file);
        // Few different ones, and many orders.
        let mut texts: HashSet<Arc<str>> = HashSet::default();
        while let Some(order) = read(&mut reader, &mut texts)? {
            take(order);
        }
        Ok(())
    }
}

fn failed(error: &io::Error) -> Failure {
    let folder = std::env::temp_dir();
    Failure::new(format!("orders cannot be kept in {}: {error}; set TMPDIR to a folder with room", folder.display()))
}

fn write(file: &mut impl Write, order: &Order) -> io::Result<()> {
    for number in [order.line, order.points, order.refunded_points.unwrap_or(NONE)] {
        file.write_all(&number.to_le_bytes())?;
    }
    file.write_all(&[stage_number(order.stage), u8::from(order.judged)])?;
    for text in [&*order.order_id, order.account.user_id(), order.account.credit_type(), &*order.status] {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn read(file: &mut impl Read, texts: &mut HashSet<Arc<str>>) -> io::Result<Option<Order>> {
    let mut fixed = [0; 26];
    if file.read(&mut fixed[..1])? == 0 {
        return Ok(None);
    }
    file.read_exact(&mut fixed[1..])?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| fixed[at + index]));
    let damaged = || io::Error::other("what was written is not what is read");
    let mut text = || -> io::Result<String> {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?];
        file.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    };
    let (order_id, user_id, credit_type, status) = (text()?, text()?, text()?, text()?);
    let mut shared = |text: String| match texts.get(text.as_str()) {
        Some(known) => known.clone(),
        None => {
            let new: Arc<str> = text.into();
            texts.insert(new.clone());
            new
        }
    };
    let account = Account::new(&user_id, &credit_type).map_err(|_| damaged())?;
    let account = Account::stored(account.id(), account.user_id().clone(), shared(credit_type));
    let stage = STAGES.into_iter().find(|stage| stage_number(*stage) == fixed[24]).ok_or_else(damaged)?;
    Ok(Some(Order {
        line: number(0),
        order_id: order_id.into(),
        account,
        points: number(8),
        stage,
        status: shared(status),
        refunded_points: Some(number(16)).filter(|points| *points != NONE),
        judged: fixed[25] == 1,
    }))
}

const STAGES: [Stage; 5] = [Stage::Held, Stage::Taken, Stage::Cancelled, Stage::Refunded, Stage::PartlyRefunded];

const fn stage_number(stage: Stage) -> u8 {
    stage as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_back_as_they_were_and_as_often_as_they_are_asked_for() {
        let order = |number: u64| Order {
            line: number,
            order_id: format!("ORDER-{number}-ü").into(),
            account: Account::new(&format!("user {number}"), "points").expect("valid"),
            points: number * 3,
            stage: STAGES[usize::try_from(number % 5).expect("small")],
            status: "some status".into(),
            refunded_points: number.is_multiple_of(2).then_some(number),
            judged: !number.is_multiple_of(3),
        };
        let mut spilling = Spilling::start().expect("room");
        let orders: Vec<_> = (0..2_000).map(order).collect();
        orders.iter().for_each(|order| spilling.add(order).expect("written"));
        let spill = spilling.finish().expect("written");
        assert_eq!((spill.orders, spill.outside), (2_000, 667));
        for _ in 0..2 {
            let mut back = Vec::new();
            for partition in Partition::all() {
                spill.each(partition, &mut |order| back.push(order)).expect("read");
            }
            back.sort_unstable_by_key(|order| order.line);
            assert_eq!(back, orders);
        }
    }
}
