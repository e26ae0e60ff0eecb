//! Names of metrics, which are an interface.

/// Steps done; the key that every line has.
pub const STEP: &str = "step";

/// Mean loss per counted token (where pairs are compared: per pair) of the step.
pub const TRAIN_LOSS: &str = "train/loss";
/// Learning rate of the step.
pub const TRAIN_LEARNING_RATE: &str = "train/learning_rate";
/// Global norm of the gradient before clipping.
pub const TRAIN_GRAD_NORM: &str = "train/grad_norm";
/// Tokens read so far.
pub const TRAIN_TOKENS: &str = "train/tokens";
/// Passes over the data so far.
pub const TRAIN_EPOCH: &str = "train/epoch";
/// Tokens a second, forward and backward.
pub const TRAIN_TOKENS_PER_SECOND: &str = "train/tokens_per_second";
/// Steps skipped so far because the loss or the gradient was not finite.
pub const TRAIN_SKIPPED_STEPS: &str = "train/skipped_steps";

/// Mean loss on held-out records.
pub const EVAL_LOSS: &str = "eval/loss";
/// Perplexity of held-out records: the exponential of [`EVAL_LOSS`].
pub const EVAL_PERPLEXITY: &str = "eval/perplexity";
/// Share of held-out pairs whose chosen answer scores higher.
pub const EVAL_ACCURACY: &str = "eval/accuracy";
/// Mean of chosen minus rejected score on held-out pairs.
pub const EVAL_MARGIN: &str = "eval/margin";
/// Expected calibration error of σ(chosen − rejected) on held-out pairs.
pub const EVAL_CALIBRATION_ERROR: &str = "eval/calibration_error";
/// Mean implicit reward of the chosen answers: DPO's β (log π − log π_ref).
pub const REWARDS_CHOSEN: &str = "rewards/chosen";
/// Mean implicit reward of the rejected answers.
pub const REWARDS_REJECTED: &str = "rewards/rejected";
/// Share of pairs whose chosen answer has the higher implicit reward; a tie is wrong.
pub const REWARDS_ACCURACIES: &str = "rewards/accuracies";
/// Mean of chosen minus rejected implicit reward.
pub const REWARDS_MARGINS: &str = "rewards/margins";
/// Mean log-prob of the chosen answers, each as a whole.
pub const LOGPS_CHOSEN: &str = "logps/chosen";
/// Mean log-prob of the rejected answers, each as a whole.
pub const LOGPS_REJECTED: &str = "logps/rejected";

/// Mean negative log-likelihood a token of the chosen sequences.
pub const NLL_LOSS: &str = "nll_loss";
/// Mean of log σ(log-odds): the odds-ratio loss with the other sign.
pub const LOG_ODDS_RATIO: &str = "log_odds_ratio";
/// Mean log-odds of the chosen answer over the rejected one.
pub const LOG_ODDS_CHOSEN: &str = "log_odds_chosen";

/// Mean score of the reward model on held-out prompts.
pub const EVAL_SCORE: &str = "eval/score";
/// Mean score of the judge on held-out prompts.
pub const EVAL_JUDGE_SCORE: &str = "eval/judge_score";
/// [`REWARD`] on held-out prompts.
pub const EVAL_REWARD: &str = "eval/reward/";
/// Spearman's correlation of the reward model's and the judge's scores over held-out prompts.
pub const EVAL_JUDGE_CORRELATION: &str = "eval/judge_correlation";
/// Share of held-out prompts on which the reward model's score and the judge's have moved in
/// opposite directions since the start.
pub const EVAL_JUDGE_DISAGREEMENT: &str = "eval/judge_disagreement";
/// 1 if, since the judge's best evaluation, the judge's score has fallen and the reward's has risen
/// beyond noise; else 0.
pub const EVAL_HACKING_WARNING: &str = "eval/hacking_warning";
/// Mean over held-out prompts of Σ_t k1, over the whole vocabulary.
pub const EVAL_KL: &str = "eval/kl";
/// Mean tokens of a completion of a held-out prompt.
pub const EVAL_LENGTH_MEAN: &str = "eval/length_mean";
/// [`EVAL_LENGTH_MEAN`] as a multiple of that before training.
pub const EVAL_LENGTH_DRIFT: &str = "eval/length_drift";
/// Token mean of the policy's entropy on held-out prompts.
pub const EVAL_ENTROPY: &str = "eval/entropy";
/// Mean over completions of the share of 4-grams that occurred earlier in the completion:
/// seq-rep-4.
pub const EVAL_SEQ_REP_4: &str = "eval/seq_rep_4";
/// Share of completions of held-out prompts that ended before the length limit.
pub const EVAL_EOS_FRACTION: &str = "eval/eos_fraction";
/// Distinct bigrams of the completions as a share of all bigrams.
pub const EVAL_DISTINCT_2: &str = "eval/distinct_2";
/// Mean over completions of the valence per word by the lexicon.
pub const EVAL_VALENCE_MEAN: &str = "eval/valence_mean";
/// Mean over completions of the summed valence by the lexicon.
pub const EVAL_VALENCE_SUM: &str = "eval/valence_sum";

/// Mean over sequences of Σ_t k1, the KL to the reference over the whole vocabulary; written where
/// `kl_coef` is above 0.
pub const OBJECTIVE_KL: &str = "objective/kl";
/// Token mean of the policy's entropy.
pub const OBJECTIVE_ENTROPY: &str = "objective/entropy";
/// Prefix of a reward component's name: its mean score, before its weight.
pub const REWARD: &str = "reward/";
/// Mean raw score: the weighted sum of the components.
pub const OBJECTIVE_SCORES: &str = "objective/scores";
/// Mean over sequences of score minus weighted KL.
pub const OBJECTIVE_RLHF_REWARD: &str = "objective/rlhf_reward";
/// Weight of the KL in the step.
pub const OBJECTIVE_KL_COEF: &str = "objective/kl_coef";

/// ½ token mean of (Δ log-prob)².
pub const POLICY_APPROX_KL: &str = "policy/approx_kl";
/// Share of tokens whose ratio was clipped.
pub const POLICY_CLIP_FRACTION: &str = "policy/clip_fraction";
/// Share of tokens whose loss the dual clip bounded; written where it is set.
pub const POLICY_DUAL_CLIP_FRACTION: &str = "policy/dual_clip_fraction";
/// Token mean of the ratio.
pub const POLICY_RATIO_MEAN: &str = "policy/ratio_mean";
/// Largest |ratio − 1| in the iteration's first minibatch: 0 where sampling and training agree.
pub const POLICY_FIRST_RATIO_MAX_DEV: &str = "policy/first_ratio_max_dev";
/// [`POLICY_APPROX_KL`] of the iteration's first minibatch alone.
pub const POLICY_FIRST_APPROX_KL: &str = "policy/first_approx_kl";
/// Global norm of the actor's gradient before clipping.
pub const POLICY_GRAD_NORM: &str = "policy/grad_norm";
/// [`POLICY_APPROX_KL`] of the whole batch after the iteration's last step, or of the minibatch
/// that ended its epochs early: the value that is compared with the limit for a rollback; written
/// if there is a limit.
pub const POLICY_LAST_APPROX_KL: &str = "policy/last_approx_kl";
/// Optimizer steps that the actor took in the iteration, including those that were rolled back; 0
/// while the critic warms up.
pub const POLICY_UPDATES: &str = "policy/updates";
/// 1 if `target_kl` ended the iteration's epochs early, else 0; written if `target_kl` is set.
pub const POLICY_STOPPED_EARLY: &str = "policy/stopped_early";
/// Number of iterations rolled back since the stage began; written if `rollback_kl_factor` is set.
pub const POLICY_ROLLED_BACK: &str = "policy/rolled_back";
/// Learning rate of the actor.
pub const POLICY_LEARNING_RATE: &str = "policy/learning_rate";
/// Mean policy loss of the iteration's minibatches.
pub const LOSS_POLICY: &str = "loss/policy";
/// KL to the reference in the loss, before its coefficient: mean of the iteration's minibatches.
pub const LOSS_KL: &str = "loss/kl";
/// Entropy that the loss rewards, before its coefficient: mean of the iteration's minibatches.
pub const LOSS_ENTROPY: &str = "loss/entropy";
/// Next-token loss on pretraining text, before its coefficient: mean of the iteration's
/// minibatches.
pub const LOSS_PTX: &str = "loss/ptx";
/// Mean value loss of the iteration's minibatches.
pub const LOSS_VALUE: &str = "loss/value";
/// Share of the returns' variance that the values explain.
pub const VALUE_EXPLAINED_VARIANCE: &str = "value/explained_variance";
/// Share of tokens whose value was clipped.
pub const VALUE_CLIP_FRACTION: &str = "value/clip_fraction";
/// Global norm of the critic's gradient before clipping.
pub const VALUE_GRAD_NORM: &str = "value/grad_norm";

/// Generated tokens a second.
pub const ROLLOUT_TOKENS_PER_SECOND: &str = "rollout/tokens_per_second";
/// Mean tokens of a completion.
pub const ROLLOUT_LENGTH_MEAN: &str = "rollout/length_mean";
/// Share of completions that ended before the length limit.
pub const ROLLOUT_EOS_FRACTION: &str = "rollout/eos_fraction";
/// Largest difference of a recorded log-prob, of the draw or over the whole vocabulary, and the
/// training forward's: 0 on the CPU.
pub const ROLLOUT_LOG_PROB_MAX_DEV: &str = "rollout/log_prob_max_dev";

/// Rounds of generation for the batch: 1, plus the further rounds of dynamic sampling.
pub const ROLLOUT_ROUNDS: &str = "rollout/rounds";
/// Prompts that dynamic sampling left out because their samples all scored alike.
pub const ROLLOUT_GROUPS_DROPPED: &str = "rollout/groups_dropped";
/// Share of the batch's prompts whose samples all have the same score, and therefore no advantage
/// under a group estimator.
pub const ROLLOUT_NO_SPREAD_FRACTION: &str = "rollout/no_spread_fraction";
/// Mean raw score of the greedy completions, ReMax's baseline.
pub const ROLLOUT_BASELINE_SCORE: &str = "rollout/baseline_score";

/// Seconds of the whole step.
pub const TIME_STEP: &str = "time/step";
/// Seconds of generation.
pub const TIME_ROLLOUT: &str = "time/rollout";
/// Seconds of scoring by reward model, reference and critic.
pub const TIME_SCORE: &str = "time/score";
/// Seconds of ReMax's greedy completions, with their scores.
pub const TIME_BASELINE: &str = "time/baseline";
/// Seconds of the optimizer steps.
pub const TIME_UPDATE: &str = "time/update";
/// Seconds of evaluation.
pub const TIME_EVAL: &str = "time/eval";
/// Peak resident bytes of the process.
pub const MEMORY_PEAK_BYTES: &str = "memory/peak_bytes";
/// Most bytes allocated on the GPU at once since the stage began.
pub const MEMORY_DEVICE_PEAK_BYTES: &str = "memory/device_peak_bytes";
