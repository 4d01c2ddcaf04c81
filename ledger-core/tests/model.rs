//! Random commands against a separate, naive model: lists of holds and deductions, added up anew each time.

use std::collections::HashMap;

use ledger_core::{
    Account, AccountState, Action, Amount, Balance, BatchMark, BusinessKey, Command, Event, EventType, Freeze, Head,
    MAX_AMOUNT, NamedAccount, Original, OriginalKind, Partition, Position, Provenance, Situation, Slot, Timestamp,
    TransactionId, chain, decide,
};
use proptest::prelude::*;

/// What is asked, in terms of a list: `pick` chooses among the holds or deductions so far.
#[derive(Debug, Clone)]
enum Asked {
    Credit(u64),
    Debit(u64),
    Freeze(u64),
    Capture { pick: usize, amount: Option<u64>, release: bool },
    Unfreeze { pick: usize, amount: Option<u64> },
    Refund { pick: usize, amount: Option<u64> },
    Lock(bool),
}

fn asked() -> impl Strategy<Value = Asked> {
    let amount = prop_oneof![8 => 1..50_u64, 1 => 1..=MAX_AMOUNT];
    let part = proptest::option::of(1..40_u64);
    prop_oneof![
        3 => amount.clone().prop_map(Asked::Credit),
        3 => amount.clone().prop_map(Asked::Debit),
        3 => amount.prop_map(Asked::Freeze),
        3 => (any::<usize>(), part.clone(), any::<bool>())
            .prop_map(|(pick, amount, release)| Asked::Capture { pick, amount, release }),
        2 => (any::<usize>(), part.clone()).prop_map(|(pick, amount)| Asked::Unfreeze { pick, amount }),
        2 => (any::<usize>(), part).prop_map(|(pick, amount)| Asked::Refund { pick, amount }),
        1 => any::<bool>().prop_map(Asked::Lock),
    ]
}

/// The naive model: everything that ever moved, and sums over it.
#[derive(Debug, Default)]
struct Naive {
    credits: Vec<u64>,
    /// (id, amount, taken, let go)
    holds: Vec<(TransactionId, u64, u64, u64)>,
    /// (id, amount, given back)
    deductions: Vec<(TransactionId, u64, u64)>,
    locked: bool,
}

impl Naive {
    fn balance(&self) -> u64 {
        let given_back: u64 = self.deductions.iter().map(|(_, _, back)| back).sum();
        self.credits.iter().sum::<u64>() + given_back - self.deductions.iter().map(|(_, amount, _)| amount).sum::<u64>()
    }

    fn frozen(&self) -> u64 {
        self.holds.iter().map(|(_, amount, taken, gone)| amount - taken - gone).sum()
    }

    /// The code of the refusal, if the model refuses; otherwise it has done what was asked.
    fn ask(&mut self, asked: &Asked, id: TransactionId) -> Option<&'static str> {
        if self.credits.is_empty() && !matches!(asked, Asked::Credit(_)) {
            return Some(match asked {
                Asked::Capture { .. } | Asked::Unfreeze { .. } => "freeze_not_found",
                Asked::Refund { .. } => "debit_not_found",
                _ => "account_not_found",
            });
        }
        let available = self.balance() - self.frozen();
        let room = MAX_AMOUNT - self.balance();
        match *asked {
            Asked::Credit(amount) if amount > room => return Some("balance_limit_exceeded"),
            Asked::Credit(amount) => self.credits.push(amount),
            Asked::Debit(_) | Asked::Freeze(_) if self.locked => return Some("account_locked"),
            Asked::Debit(amount) | Asked::Freeze(amount) if amount > available => return Some("insufficient_balance"),
            Asked::Debit(amount) => self.deductions.push((id, amount, 0)),
            Asked::Freeze(amount) => self.holds.push((id, amount, 0, 0)),
            Asked::Capture { pick, amount, release } => {
                let Some(hold) = picked(&mut self.holds, pick) else { return Some("freeze_not_found") };
                if self.locked {
                    return Some("account_locked");
                }
                let rest = hold.1 - hold.2 - hold.3;
                let amount = amount.unwrap_or(rest);
                if amount == 0 || amount > rest {
                    return Some("insufficient_frozen");
                }
                hold.2 += amount;
                if release {
                    hold.3 += rest - amount;
                }
                self.deductions.push((id, amount, 0));
            }
            Asked::Unfreeze { pick, amount } => {
                let Some(hold) = picked(&mut self.holds, pick) else { return Some("freeze_not_found") };
                let rest = hold.1 - hold.2 - hold.3;
                let amount = amount.unwrap_or(rest);
                if amount == 0 || amount > rest {
                    return Some("insufficient_frozen");
                }
                hold.3 += amount;
            }
            Asked::Refund { pick, amount } => {
                let Some(deduction) = picked(&mut self.deductions, pick) else { return Some("debit_not_found") };
                let rest = deduction.1 - deduction.2;
                let amount = amount.unwrap_or(rest);
                if amount == 0 || amount > rest {
                    return Some("refund_exceeds_debit");
                }
                if amount > room {
                    return Some("balance_limit_exceeded");
                }
                deduction.2 += amount;
            }
            Asked::Lock(lock) => self.locked = lock,
        }
        None
    }
}

fn picked<T>(list: &mut [T], pick: usize) -> Option<&mut T> {
    if list.is_empty() {
        None
    } else {
        let index = pick % list.len();
        list.get_mut(index)
    }
}

/// The real thing: state, originals and read models, moved by events alone.
struct Real {
    account: Account,
    state: Option<AccountState>,
    originals: HashMap<TransactionId, Original>,
    head: Head,
    balance: Option<Balance>,
    freezes: HashMap<TransactionId, Freeze>,
}

impl Real {
    fn ask(&mut self, action: Action, number: usize) -> Result<Event, &'static str> {
        let original = action.original().and_then(|id| self.originals.get(&id).copied());
        let command = Command {
            action,
            key: BusinessKey::new("test", &number.to_string()).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: "request".into(),
                actor: "test".into(),
                description: None,
                metadata: None,
            },
        };
        let now = Timestamp::from_micros(1_700_000_000_000_000).expect("in range");
        let situation = Situation { account: self.state.as_ref(), original: original.as_ref() };
        let effect = decide(&situation, &command, now).map_err(|refusal| refusal.code())?;
        let previous_position = self.head.position;
        let slot = Slot { partition: self.account.partition(), head: self.head, previous_position };
        let event = Event::seal(&self.account, &command, &effect, &slot, None, now);
        assert_eq!(chain::link(&self.head.hash, &event), event.hash);
        self.head = event.head();
        self.state = Some(event.after);
        if let Some(original) = Original::made_by(&event) {
            self.originals.insert(event.transaction_id, original);
        }
        if let (Some(related), Some(remaining)) = (event.related_id, event.remaining) {
            self.originals.get_mut(&related).expect("decided on it").remaining = remaining;
        }
        // A projector that has not read the row before the event takes it from the event; a lock does not tell it.
        let preceding = Balance::preceding(&event);
        let tells = self.balance.is_some() && !matches!(event.event_type, EventType::Locked | EventType::Unlocked);
        let before = self.balance.as_ref().filter(|_| tells).map(|before| (before.state, before.position));
        assert_eq!(preceding.map(|before| (before.state, before.position)), before);
        // The read models fold the amounts and compare them with what the event carries.
        self.balance = Some(Balance::fold(self.balance.as_ref(), &event).expect("no contradiction"));
        if let Some(freeze) = Freeze::opened_by(&event) {
            self.freezes.insert(event.transaction_id, freeze);
        }
        if let Some(id) = Freeze::touched_by(&event) {
            self.freezes.get_mut(&id).expect("opened before").fold(&event).expect("no contradiction");
        }
        Ok(event)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_domain_does_what_a_naive_ledger_does(all in proptest::collection::vec(asked(), 1..120)) {
        let account = Account::new("ann", "points").expect("valid");
        let mut real = Real {
            account: account.clone(), state: None, originals: HashMap::new(), head: Head::EMPTY, balance: None,
            freezes: HashMap::new(),
        };
        let mut naive = Naive::default();
        let nowhere = TransactionId::derive(
            &account, ledger_core::Epoch(9), Position(9), &BusinessKey::new("x", "y").expect("valid"),
        );
        for (number, asked) in all.iter().enumerate() {
            let hold = |pick: usize, naive: &mut Naive| picked(&mut naive.holds, pick).map_or(nowhere, |hold| hold.0);
            let units = |amount: u64| Amount::new(amount).expect("valid");
            let (account, named) = (account.clone(), NamedAccount::default());
            let action = match *asked {
                Asked::Credit(amount) => Action::Credit { account, amount: units(amount) },
                Asked::Debit(amount) => Action::Debit { account, amount: units(amount) },
                Asked::Freeze(amount) => Action::Freeze { account, amount: units(amount), expiry: None },
                Asked::Capture { pick, amount, release } => Action::Capture {
                    freeze: hold(pick, &mut naive), named, amount: amount.map(units), release_remainder: Some(release),
                },
                Asked::Unfreeze { pick, amount } => {
                    Action::Unfreeze { freeze: hold(pick, &mut naive), named, amount: amount.map(units) }
                }
                Asked::Refund { pick, amount } => Action::Refund {
                    debit: picked(&mut naive.deductions, pick).map_or(nowhere, |deduction| deduction.0),
                    named,
                    amount: amount.map(units),
                },
                Asked::Lock(true) => Action::Lock { account },
                Asked::Lock(false) => Action::Unlock { account },
            };
            let done = real.ask(action, number);
            let id = done.as_ref().map_or(nowhere, |event| event.transaction_id);
            prop_assert_eq!(naive.ask(asked, id), done.as_ref().err().copied(), "command {}: {:?}", number, asked);
            if let Some(state) = real.state {
                prop_assert_eq!((state.balance, state.frozen, state.locked), (naive.balance(), naive.frozen(), naive.locked));
                prop_assert!(state.frozen <= state.balance && state.balance <= MAX_AMOUNT);
                prop_assert_eq!(state.version, real.head.position.0);
                prop_assert_eq!(real.balance.as_ref().map(|balance| balance.state), Some(state));
                let open: u64 = real.freezes.values().map(|freeze| freeze.remaining).sum();
                prop_assert_eq!(open, state.frozen);
            }
        }
    }

    #[test]
    fn a_change_to_any_field_changes_the_hash(which in 0..25_usize, delta in 1..1_000_u64) {
        let account = Account::new("ann", "points").expect("valid");
        let mut real = Real {
            account: account.clone(), state: None, originals: HashMap::new(), head: Head::EMPTY, balance: None,
            freezes: HashMap::new(),
        };
        let event = real.ask(Action::Credit { account, amount: Amount::new(delta).expect("valid") }, 1).expect("done");
        let mut other = event.clone();
        let nowhere = TransactionId::derive(&event.account, ledger_core::Epoch(9), Position(9), &event.key);
        match which {
            0 => other.epoch.0 += 1,
            1 => other.position.0 += delta,
            2 => other.previous_position.0 += delta,
            3 => other.event_type = EventType::Refunded,
            4 => other.schema_version += 1,
            5 => other.account = Account::new("bob", "points").expect("valid"),
            6 => other.amount = None,
            7 => other.released += delta,
            8 => other.related_id = Some(event.transaction_id),
            9 => other.remaining = Some(0),
            10 => other.after.balance += delta,
            11 => other.after.frozen += delta,
            12 => other.after.locked = true,
            13 => other.after.version += delta,
            14 => other.key = BusinessKey::new("test", "2").expect("valid"),
            15 => other.request_id = "another".into(),
            16 => other.description = Some("".into()),
            17 => other.metadata = Some("{}".into()),
            18 => other.expires_at = Some(event.recorded_at),
            19 => other.partition = Partition::all().find(|other| *other != event.partition).expect("there are more"),
            20 => other.transaction_id = nowhere,
            21 => other.operation_id = uuid::Uuid::from_u128(u128::from(delta)),
            22 => other.actor = "another".into(),
            23 => other.batch = Some(BatchMark { id: event.operation_id, size: 2, index: 0 }),
            _ => other.recorded_at = event.recorded_at.plus_seconds(delta).expect("in range"),
        }
        prop_assert_ne!(chain::link(&Head::EMPTY.hash, &other), event.hash);
        prop_assert_eq!(chain::link(&Head::EMPTY.hash, &event), event.hash);
    }
}

#[test]
fn an_original_is_what_the_event_made() {
    let account = Account::new("ann", "points").expect("valid");
    let mut real = Real {
        account: account.clone(),
        state: None,
        originals: HashMap::new(),
        head: Head::EMPTY,
        balance: None,
        freezes: HashMap::new(),
    };
    let ten = Amount::new(10).expect("valid");
    real.ask(Action::Credit { account: account.clone(), amount: ten }, 1).expect("done");
    let frozen = real.ask(Action::Freeze { account, amount: ten, expiry: None }, 2).expect("done");
    let four = Amount::new(4).ok();
    let named = NamedAccount::default();
    let freeze = frozen.transaction_id;
    let taken = real.ask(Action::Capture { freeze, named, amount: four, release_remainder: None }, 3).expect("done");
    // The event speaks of what is left of the freeze; of the capture itself all may be refunded.
    assert_eq!(taken.remaining, Some(6));
    let original = Original::made_by(&taken).expect("a deduction");
    assert_eq!((original.kind, original.remaining), (OriginalKind::Deduction, 4));
}
