//! Refuses sampling that always draws the likeliest token: its probability is then 1 for all
//! weights, the gradient of its log-prob is 0, and the policy cannot learn.

use super::{Generation, Keys};

/// Reports settings of `[ppo]` that leave only one token to draw. For `top_p` alone it depends on
/// the size of the vocabulary, which is known later: [`keeps_one_of`].
pub(super) fn check(generation: &Generation, keys: &mut Keys<'_, '_>) {
    let Generation {
        top_k,
        top_p,
        min_p,
        ..
    } = *generation;
    let nothing = "only the likeliest token can be drawn, with probability 1, so that the policy \
                   cannot learn";
    if top_k == 1 {
        let message = format!("{nothing}; set it to 2 or more, or to 0, which does not cut");
        keys.wrong("top_k", top_k, message);
    } else if top_k > 1 && keeps_one_of(top_k, top_p) {
        let message = format!(
            "the likeliest of top_k = {top_k} tokens has at least this share: {nothing}; raise it \
             above {:.3}, or remove this key",
            1.0 / top_k as f64
        );
        keys.wrong("top_p", top_p, message);
    }
    if min_p == 1.0 {
        let message = format!("{nothing}; lower it (0.1 is much), or remove this key");
        keys.wrong("min_p", min_p, message);
    }
}

/// Whether `top_p` keeps only one token of every distribution over `count` tokens: the likeliest
/// has a share of at least 1 / `count`.
pub fn keeps_one_of(count: usize, top_p: f64) -> bool {
    top_p > 0.0 && top_p * count as f64 <= 1.0
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, resolve};

    #[test]
    fn sampling_that_leaves_one_token_is_refused() {
        let nothing = "cannot learn";
        refused(&["ppo.top_k=1"], &["ppo.top_k = 1", nothing, "2 or more"]);
        refused(&["ppo.min_p=1.0"], &["ppo.min_p = 1", nothing]);
        refused(
            &["ppo.top_k=4", "ppo.top_p=0.25"],
            &["ppo.top_p = 0.25", "top_k = 4", nothing, "above 0.250"],
        );
        refused(
            &["ppo.temperature=0"],
            &["ppo.temperature", "larger than 0"],
        );
        for (temperature, words) in [
            ("0.00001", "between 0.0001 and 10000"),
            ("20000", "at most 10000"),
        ] {
            let set = format!("ppo.temperature={temperature}");
            refused(&[&set], &["ppo.temperature", words]);
        }
        for sound in [
            &["ppo.top_k=2"][..],
            &["ppo.top_k=4", "ppo.top_p=0.26"],
            &["ppo.top_p=0.01"],
            &["ppo.min_p=0.99", "ppo.temperature=0.0001"],
        ] {
            resolve(sound).unwrap();
        }
    }
}
