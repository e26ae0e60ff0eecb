//! The keys of `[[ppo.rewards]]`.

use std::sync::Arc;

use serde_json::{Value, json};
use tiny_http::{Response, Server};

use crate::bench::Bench;
use crate::row::{Row, row};

/// The configurations of the rule rewards, with one table each.
const RULES: [(&str, &str); 6] = [
    ("exact.toml", "type = \"exact\"\nextract = '(\\w+)\\.?$'"),
    (
        "numeric.toml",
        "type = \"numeric\"\nanswer_key = \"number\"\ntolerance = 3.5",
    ),
    ("regex.toml", "type = \"regex\"\npattern = \"happy|lovely\""),
    ("length.toml", "type = \"length\"\nmin = 3\nmax = 6"),
    ("json.toml", "type = \"json\"\nextract = '([0-9])'"),
    (
        "repetition.toml",
        "type = \"repetition\"\nngram = 1\nunit = \"characters\"",
    ),
];

/// Sampling that is nearly uniform over the vocabulary, digits included.
const NOISE: &str = "ppo.temperature=50.0 ppo.max_new_tokens=20";

fn part(kind: &str, key: &str, value: &str, file: &'static str) -> Row {
    row(&format!("ppo.rewards.{kind}.{key}"), value).of_reward(file)
}

/// The rows of the keys `pass` and `fail`.
fn outcomes(kind: &str, file: &'static str, under: &str) -> [Row; 2] {
    [("pass", "3.0"), ("fail", "-1.0")]
        .map(|(key, value)| part(kind, key, value, file).under(under))
}

/// The keys of the array, and of models that score.
pub fn models() -> Vec<Row> {
    let ensemble = |key: &str, value: &str| part("ensemble", key, value, "ensemble.toml");
    let classifier = |key: &str, value: &str| part("classifier", key, value, "classifier.toml");
    let golden = |name: &str| {
        let manifest = env!("CARGO_MANIFEST_DIR");
        format!("{manifest}/tests/golden/classifiers/{name}")
    };
    let before_end = "ppo.rewards[0].score_at=last_non_pad";
    let lowered = "ppo.rewards[0].combine=mean_minus_deviation";
    let array = "[{type=\"repetition\",ngram=1,unit=\"tokens\"}]";
    vec![
        row("ppo.rewards", array).of("bare.toml"),
        row("ppo.rewards.type", "exact")
            .of_reward("bare.toml")
            .under(NOISE),
        row("ppo.rewards.name", "other")
            .of_reward("bare.toml")
            .idles("it is what the score is called in the log"),
        row("ppo.rewards.weight", "3.0").of_reward("repetition.toml"),
        part("model", "path", "runs/other/reward/final", "model.toml"),
        part("model", "score_at", "eos", "model.toml")
            .under(&format!("ppo.rewards[0].path=models/padded {before_end}")),
        ensemble("score_at", "eos").under(&format!(
            "ppo.rewards[0].paths=[\"models/padded\",\"models/padded\"] {before_end}"
        )),
        ensemble("paths", "[\"models/reward\",\"models/reward\"]"),
        ensemble("combine", "minimum"),
        ensemble("deviations", "3.0").under(lowered),
        classifier("path", &golden("modernbert")),
        classifier("label", "negative"),
        classifier("output", "probability"),
        classifier("reads", "text"),
        classifier("max_length", "8").under("ppo.rewards[0].reads=text"),
    ]
}

/// The keys of the rules.
pub fn rules() -> Vec<Row> {
    let exact = |key: &str, value: &str| part("exact", key, value, "exact.toml");
    let numeric = |key: &str, value: &str| part("numeric", key, value, "numeric.toml").under(NOISE);
    let length = |key: &str, value: &str| part("length", key, value, "length.toml");
    let json = |key: &str, value: &str| part("json", key, value, "json.toml").under(NOISE);
    let repetition = |key: &str, value: &str| part("repetition", key, value, "repetition.toml");
    let mut rows = vec![
        exact("answer_key", "other"),
        exact("extract", "'^(zzz)'"),
        numeric("answer_key", "far"),
        numeric("extract", "'(zzz)'"),
        numeric("tolerance", "0.5"),
        part("regex", "pattern", "sad|ugly", "regex.toml"),
        length("unit", "words"),
        length("min", "9").under("ppo.rewards[0].max=10"),
        length("max", "4"),
        length("margin", "3"),
        json("extract", "'([0-4])'"),
        json("keys", "[\"a\"]"),
        repetition("ngram", "2"),
        repetition("unit", "tokens"),
    ];
    rows.extend(outcomes("exact", "exact.toml", ""));
    rows.extend(outcomes("numeric", "numeric.toml", NOISE));
    rows.extend(outcomes("regex", "regex.toml", ""));
    rows.extend(outcomes("length", "length.toml", ""));
    rows.extend(outcomes("json", "json.toml", NOISE));
    rows
}

/// The keys of a program, and of an endpoint at this address.
pub fn others(endpoint: &str) -> Vec<Row> {
    let program = |key: &str, value: &str| part("program", key, value, "program.toml");
    let http = |key: &str, value: &str| {
        let url = format!("ppo.rewards[0].url={endpoint}/aeo");
        part("http", key, value, "http.toml").under(&url)
    };
    let neighbours =
        "this endpoint scores each completion by itself; another may look at a request as a whole";
    vec![
        program("command", "[\"sh\",\"other_letters.sh\"]"),
        program("timeout_seconds", "50.0").stays(),
        http("url", &format!("{endpoint}/st")),
        http("batch_size", "3").idles(neighbours),
        http("timeout_seconds", "50.0").stays(),
        http("retries", "5").stays(),
        http("backoff_seconds", "0.5").stays(),
        http("token_env", "COLLIMATE_KEY").stays(),
    ]
}

/// An endpoint that scores each completion by how many of its letters are in the request path.
fn answer(server: &Server) {
    for mut request in server.incoming_requests() {
        let mut body = String::new();
        request
            .as_reader()
            .read_to_string(&mut body)
            .expect("a question");
        let question: Value = serde_json::from_str(&body).expect("JSON");
        let completions = question["completions"].as_array().expect("completions");
        let text = |asked: &Value| asked["completion"].as_str().expect("a text").to_owned();
        let letters = |text: String| text.chars().filter(|c| request.url().contains(*c)).count();
        let scores: Vec<usize> = completions.iter().map(text).map(letters).collect();
        let answer = Response::from_string(json!(scores).to_string());
        request.respond(answer).expect("an answer");
    }
}

fn add(bench: &Bench, file: &str, table: &str) {
    bench.add_rewards(file, &format!("[[ppo.rewards]]\n{table}\n"));
}

#[test]
fn keys_of_models_that_score_arrive() {
    let bench = Bench::new();
    bench.make("other", "reward", "reward.max_steps=3 run.seed=4");
    add(&bench, "bare.toml", RULES[4].1);
    add(&bench, "repetition.toml", RULES[5].1);
    add(
        &bench,
        "model.toml",
        "type = \"model\"\npath = \"models/reward\"",
    );
    let paths = "paths = [\"models/reward\", \"runs/other/reward/final\"]";
    add(
        &bench,
        "ensemble.toml",
        &format!("type = \"ensemble\"\n{paths}"),
    );
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/classifiers/bert");
    let classifier = format!("type = \"classifier\"\npath = \"{golden}\"\nlabel = \"positive\"");
    add(&bench, "classifier.toml", &classifier);
    bench.try_all(models());
}

#[test]
fn keys_of_rules_arrive() {
    let bench = Bench::new();
    for (file, table) in RULES {
        add(&bench, file, table);
    }
    bench.try_all(rules());
}

#[test]
fn keys_of_programs_and_endpoints_arrive() {
    let server = Arc::new(Server::http("127.0.0.1:0").expect("a port"));
    let address = server.server_addr().to_ip().expect("an address");
    let serving = Arc::clone(&server);
    let thread = std::thread::spawn(move || answer(&serving));
    let bench = Bench::new();
    add(
        &bench,
        "program.toml",
        "type = \"program\"\ncommand = [\"sh\", \"letters.sh\"]",
    );
    add(
        &bench,
        "http.toml",
        "type = \"http\"\nurl = \"http://localhost\"",
    );
    bench.try_all(others(&format!("http://{address}")));
    server.unblock();
    thread.join().expect("the endpoint");
}
