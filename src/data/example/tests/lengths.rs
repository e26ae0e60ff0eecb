//! Sequences that are longer than the limit.

use super::{answers, limit, message, records, tokenizer};
use crate::config::{BadRecords, TooLong};
use crate::data::example::{Encoder, cut_start};

#[test]
fn what_is_too_long_follows_the_policy() {
    let t = tokenizer(None);
    let lines = [
        r#"{"prompt": "a", "completion": "b"}"#,
        r#"{"prompt": "zzz", "completion": "yyyyyyyy"}"#,
    ];
    let encode = |policy| {
        Encoder::new(&t, limit(8), policy)
            .unwrap()
            .examples(&records(&lines))
    };
    let e = message(encode(TooLong::Error));
    assert!(
        e.contains("d.jsonl:2") && e.contains("12 tokens but sft.max_length is 8"),
        "{e}"
    );
    let skipped = encode(TooLong::Skip).unwrap();
    assert_eq!((skipped.items.len(), skipped.too_long.skipped), (1, 1));
    let cut = encode(TooLong::Truncate).unwrap();
    assert_eq!(
        (cut.items[1][0].ids.len(), &cut.items[1][0].answer[0]),
        (8, &(3..8))
    );
    assert_eq!(cut.too_long.truncated, 1);

    let long =
        records(&[r#"{"prompt": "zzzzzzzz", "completion": "y", "chosen": "x", "rejected": "yy"}"#]);
    assert!(
        Encoder::new(&t, limit(8), TooLong::Error)
            .unwrap()
            .prompts(&long)
            .is_ok()
    );
    let short = limit(7).or("lower ppo.max_new_tokens");
    let encoder = Encoder::new(&t, short, TooLong::Error).unwrap();
    let e = message(encoder.prompts(&long));
    let mend = "sft.max_length is 7; shorten it, or raise sft.max_length or lower ppo.max";
    assert!(e.contains(mend), "{e}");
    let e = message(
        Encoder::new(&t, limit(8), TooLong::Skip)
            .unwrap()
            .pairs(&long),
    );
    assert!(e.contains("no record is left: all 1 are too long"), "{e}");
    assert!(e.contains("raise sft.max_length"), "{e}");
}

/// A byte is a token here, and the answer's last is EOS.
#[test]
fn a_prompt_that_leaves_no_room_loses_its_start() {
    let t = tokenizer(None);
    let encoder = |tokens| Encoder::new(&t, limit(tokens), TooLong::Truncate).unwrap();
    let long = records(&[
        r#"{"prompt": "xzwvxzwv", "completion": "y", "chosen": "x", "rejected": "yw"}"#,
        r#"{"prompt": "xzwvxzwv", "completion": "yyyyyyyy", "chosen": "xxxxxxxx",
            "rejected": "y"}"#,
    ]);
    let text = |ids: &[u32]| t.decode_with_specials(ids).unwrap();

    let examples = encoder(8).examples(&long).unwrap();
    assert_eq!(text(&examples.items[0][0].ids), "wvxzwvy<|endoftext|>");
    assert_eq!(answers(&t, &examples.items[0][0]), ["y<|endoftext|>"]);
    assert_eq!(text(&examples.items[1][0].ids), "xzwvyyyy", "half for each");
    assert_eq!(answers(&t, &examples.items[1][0]), ["yyyy"]);

    let pairs = encoder(7).pairs(&long).unwrap();
    let first = &pairs.items[0];
    let parts = [&first.prompt, &first.chosen, &first.rejected].map(|ids| text(ids));
    assert_eq!(parts, ["xzwv", "x<|endoftext|>", "yw<|endoftext|>"]);
    let second = &pairs.items[1];
    let parts = [&second.prompt, &second.chosen, &second.rejected].map(|ids| text(ids));
    assert_eq!(parts, ["zwv", "xxxx", "y<|endoftext|>"]);

    let prompts = encoder(3).prompts(&long).unwrap();
    assert_eq!(
        (text(&prompts.items[0].ids), &*prompts.items[0].text),
        ("zwv".into(), "zwv")
    );
    for counts in [examples.too_long, pairs.too_long, prompts.too_long] {
        assert_eq!(
            (counts.prompts_truncated, counts.truncated, counts.skipped),
            (2, 0, 0)
        );
    }
    let e = message(encoder(0).prompts(&long));
    assert!(e.contains("the prompt has 8 tokens"), "no room at all: {e}");
    let e = message(encoder(1).pairs(&long));
    assert!(
        e.contains("the prompt has 8 tokens"),
        "no room for both: {e}"
    );
}

#[test]
fn what_stands_before_every_text_stays_before_a_cut_prompt() {
    let mut ids = vec![1, 5, 6, 7, 8];
    cut_start(&mut ids, &[1], 3);
    assert_eq!(ids, [1, 7, 8]);
    let mut ids = vec![4, 5, 6, 7];
    cut_start(&mut ids, &[1], 2);
    assert_eq!(ids, [6, 7], "a template may write no BOS");
    let mut ids = vec![1, 5, 6];
    cut_start(&mut ids, &[1], 1);
    assert_eq!(ids, [6]);
}

/// Too long is not bad: it has a policy of its own.
#[test]
fn a_record_that_is_too_long_is_not_left_out_as_bad() {
    let t = tokenizer(None);
    let encoder = Encoder::new(&t, limit(4), TooLong::Error).unwrap();
    let encoder = encoder.with_bad_records(BadRecords::Skip);
    let e = message(encoder.examples(&records(&[r#"{"prompt": "zz", "completion": "yyyy"}"#])));
    assert!(e.contains("7 tokens but sft.max_length is 4"), "{e}");
}
