//! A user's HTTP endpoint that scores batches by POST ([`exchange`](super::exchange) documents the
//! JSON).
//!
//! A timeout, a broken connection and the statuses 408, 429 and 5xx are retried after a delay that
//! doubles; any other status, a wrong response and one above 16 MiB are errors at once. Redirects
//! are not followed: they would turn the POST into a GET.

use std::io;
use std::time::Duration;

use backon::{BlockingRetryable, ExponentialBuilder};
use ureq::{Agent, Error};

use super::exchange::{LONGEST_RESPONSE, ResponseForm, request_json, scores as scores_in, shown};
use super::{RewardBatch, RewardError, RewardInput, Scorer};
use crate::config::{HttpReward, LONGEST_BACKOFF};

/// An endpoint that scores completions.
pub struct Http {
    config: HttpReward,
    agent: Agent,
    /// Value of the `Authorization` header.
    authorization: Option<String>,
}

/// Why a request has no response.
struct Failure {
    what: String,
    again: bool,
}

impl Http {
    /// The endpoint of a configuration; nothing is sent yet.
    ///
    /// # Errors
    /// If the environment variable of the token is not set.
    pub fn new(config: &HttpReward) -> Result<Self, RewardError> {
        let token = config.token_env.as_ref().map(|variable| {
            std::env::var(variable).map_err(|_| RewardError::Http {
                url: config.url.clone(),
                message: format!(
                    "needs the token of the environment variable {variable}, which is not set; set \
                     it, or remove token_env"
                ),
            })
        });
        let timeout = Duration::from_secs_f64(config.timeout_seconds.min(1e9));
        let agent = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Ok(Self {
            config: config.clone(),
            agent: agent.into(),
            authorization: token.transpose()?.map(|token| format!("Bearer {token}")),
        })
    }

    fn request_scores(&self, completions: &[RewardInput]) -> Result<Vec<f32>, RewardError> {
        let body = request_json(completions).to_string();
        let delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs_f64(self.config.backoff_seconds))
            .with_max_delay(Duration::from_secs_f64(LONGEST_BACKOFF))
            .with_max_times(self.config.retries);
        let response = (|| self.send(&body)).retry(delays).when(|f| f.again).call();
        let response = response.map_err(|failure| match failure.again {
            true => format!(
                "{} ({} attempts); check that it is running, or raise timeout_seconds or retries",
                failure.what,
                self.config.retries + 1
            ),
            false => failure.what,
        });
        let scores =
            response.and_then(|response| scores_in(&response, completions, ResponseForm::Body));
        scores.map_err(|message| self.failed(message))
    }

    fn send(&self, body: &str) -> Result<String, Failure> {
        let mut request = self
            .agent
            .post(&self.config.url)
            .header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send(body).map_err(|e| self.no_answer(e))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config();
        let body = body.limit(LONGEST_RESPONSE as u64).lossy_utf8(true);
        let text = body.read_to_string().map_err(|e| self.no_answer(e))?;
        if response.status().is_success() {
            return Ok(text);
        }
        Err(Failure {
            what: format!(
                "answered with status {status} and {}{}",
                shown(&text),
                advice(status)
            ),
            again: status >= 500 || status == 429 || status == 408,
        })
    }

    fn no_answer(&self, error: Error) -> Failure {
        let lasting = matches!(
            error,
            Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl | Error::BodyExceedsLimit(_)
        );
        let what = match error {
            Error::BodyExceedsLimit(limit) => {
                format!("answered with more than {} MiB", limit >> 20)
            }
            Error::Timeout(_) => format!(
                "did not answer within {} seconds",
                self.config.timeout_seconds
            ),
            Error::HostNotFound => "did not answer: no host has this name".to_owned(),
            Error::Io(error) => no_connection(&error),
            error => format!("did not answer: {error}"),
        };
        Failure {
            what,
            again: !lasting,
        }
    }

    fn failed(&self, message: String) -> RewardError {
        RewardError::Http {
            url: self.config.url.clone(),
            message,
        }
    }
}

impl Scorer for Http {
    fn scores(&self, batch: &RewardBatch) -> Result<Vec<f32>, RewardError> {
        let mut scores = Vec::with_capacity(batch.completions.len());
        for part in batch.completions.chunks(self.config.batch_size) {
            scores.extend(self.request_scores(part)?);
        }
        Ok(scores)
    }
}

/// Why a connection gave no response, in words that follow the endpoint.
fn no_connection(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused the connection".to_owned(),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "closed the connection without an answer".to_owned(),
        _ => format!("did not answer: {error}"),
    }
}

/// What to do about a status that is not requested again; empty, or starting with `; `.
fn advice(status: u16) -> &'static str {
    match status {
        408 | 429 | 500.. => "",
        300..=399 => "; redirects are not followed: set url to the address that it names",
        401 | 403 => "; set token_env to the variable that holds its token",
        404 | 405 => "; check the path of url: it must take a POST",
        413 => "; lower batch_size",
        _ => "; it did not accept the request, which is JSON as docs/rewards.md shows it",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Instant;

    use serde_json::{Value, json};
    use tiny_http::{Request, Response, Server};

    use super::*;
    use crate::reward::sample::score_texts;

    /// The requests that the endpoint received: body and `Authorization` header.
    type RequestLog = Arc<Mutex<Vec<(Value, Option<String>)>>>;

    /// Starts an endpoint whose n-th request is answered by `answer`: status, body and delay in
    /// seconds.
    fn serve(
        answer: impl Fn(usize, &Value) -> (u16, String, f64) + Send + 'static,
    ) -> (String, RequestLog) {
        let server = Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", server.server_addr());
        let requests = RequestLog::default();
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for (n, mut request) in server.incoming_requests().enumerate() {
                let body: Value = serde_json::from_reader(request.as_reader()).unwrap();
                let (status, text, seconds) = answer(n, &body);
                log.lock().unwrap().push((body, authorization(&request)));
                // The next request need not wait for a slow answer.
                thread::spawn(move || {
                    thread::sleep(Duration::from_secs_f64(seconds));
                    let _ = request.respond(Response::from_string(text).with_status_code(status));
                });
            }
        });
        (url, requests)
    }

    fn authorization(request: &Request) -> Option<String> {
        let header = |h: &&tiny_http::Header| h.field.equiv("Authorization");
        let found = request.headers().iter().find(header)?;
        Some(found.value.to_string())
    }

    fn config(url: String) -> HttpReward {
        HttpReward {
            url,
            timeout_seconds: 20.0,
            retries: 2,
            backoff_seconds: 0.01,
            ..HttpReward::default()
        }
    }

    fn score(config: &HttpReward, count: usize) -> Result<Vec<f32>, String> {
        let texts: Vec<String> = (0..count).map(|i| "x".repeat(i)).collect();
        let http = Http::new(config).map_err(|error| error.to_string())?;
        score_texts(&http, &texts).map_err(|error| error.to_string())
    }

    /// Scores each completion by its length.
    fn lengths(body: &Value) -> String {
        let completions = body["completions"].as_array().unwrap();
        let length = |c: &Value| c["completion"].as_str().unwrap().len();
        json!({"scores": completions.iter().map(length).collect::<Vec<_>>()}).to_string()
    }

    #[test]
    fn batches_are_answered_in_order() {
        let (url, requests) = serve(|_, body| (200, lengths(body), 0.0));
        let config = HttpReward {
            batch_size: 2,
            ..config(url)
        };
        assert_eq!(score(&config, 5), Ok(vec![0.0, 1.0, 2.0, 3.0, 4.0]));
        let requests = requests.lock().unwrap();
        let sizes = requests
            .iter()
            .map(|(body, _)| body["completions"].as_array().unwrap().len());
        assert_eq!(sizes.collect::<Vec<_>>(), [2, 2, 1]);
        assert!(requests.iter().all(|(_, token)| token.is_none()));
    }

    #[test]
    fn a_late_response_is_requested_again() {
        let (url, requests) = serve(|n, body| (200, lengths(body), if n == 0 { 5.0 } else { 0.0 }));
        let config = HttpReward {
            timeout_seconds: 0.5,
            ..config(url)
        };
        let start = Instant::now();
        assert_eq!(score(&config, 2), Ok(vec![0.0, 1.0]));
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(requests.lock().unwrap().len(), 2);
    }

    #[test]
    fn failing_without_end_is_an_error_with_what_was_said() {
        let (url, requests) = serve(|_, _| (500, "out of memory".into(), 0.0));
        let error = score(&config(url.clone()), 1).unwrap_err();
        for part in [&url, "status 500", "out of memory", "3 attempts"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(requests.lock().unwrap().len(), 3);
    }

    /// A response without end: no more bytes are read than allowed.
    #[test]
    fn an_answer_without_end_is_not_held() {
        let server = Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", server.server_addr());
        thread::spawn(move || {
            for request in server.incoming_requests() {
                let endless = std::io::repeat(b'1');
                let _ = request.respond(Response::new(200.into(), vec![], endless, None, None));
            }
        });
        let error = score(&config(url.clone()), 1).unwrap_err();
        let says = "answered with more than 16 MiB";
        assert!(error.contains(&url) && error.contains(says), "{error}");
    }

    #[test]
    fn waits_double_between_attempts() {
        let (url, _) = serve(|n, body| match n {
            0 => (429, String::new(), 0.0),
            1 => (503, String::new(), 0.0),
            _ => (200, lengths(body), 0.0),
        });
        let config = HttpReward {
            backoff_seconds: 0.2,
            ..config(url)
        };
        let start = Instant::now();
        assert_eq!(score(&config, 1), Ok(vec![0.0]));
        assert!(
            start.elapsed() >= Duration::from_millis(600),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn a_refusal_is_not_repeated() {
        let (url, requests) = serve(|_, _| (404, "no such path".into(), 0.0));
        let error = score(&config(url), 1).unwrap_err();
        assert!(
            error.contains("status 404") && error.contains("no such path"),
            "{error}"
        );
        assert!(error.contains("check the path of url"), "{error}");
        assert_eq!(requests.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_wrong_count_is_an_error_at_once() {
        let (url, requests) = serve(|_, _| (200, "[1, 2]".into(), 0.0));
        let error = score(&config(url.clone()), 3).unwrap_err();
        for part in [
            &url,
            "\"[1, 2]\"",
            "has 2 scores",
            "; expected JSON with 3 finite numbers",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(requests.lock().unwrap().len(), 1);
    }

    #[test]
    fn nobody_listening_is_an_error() {
        // A port that was free a moment ago.
        let url = {
            let server = Server::http("127.0.0.1:0").unwrap();
            format!("http://{}/", server.server_addr())
        };
        let error = score(&config(url), 1).unwrap_err();
        assert!(
            error.contains("refused the connection (3 attempts)"),
            "{error}"
        );
    }

    #[test]
    fn an_endpoint_that_is_slow_or_hangs_up_is_named_in_plain_words() {
        let (url, _) = serve(|_, body| (200, lengths(body), 5.0));
        let slow = HttpReward {
            timeout_seconds: 0.2,
            ..config(url)
        };
        let error = score(&slow, 1).unwrap_err();
        assert!(
            error.contains("did not answer within 0.2 seconds (3 attempts)"),
            "{error}"
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        // The request is read before the connection is closed, so that it is not reset.
        thread::spawn(move || {
            for connection in listener.incoming() {
                let _ = connection.unwrap().read(&mut [0; 1 << 12]);
            }
        });
        let error = score(&config(url), 1).unwrap_err();
        assert!(error.contains("closed the connection"), "{error}");
    }

    #[test]
    fn the_token_is_sent_and_must_be_there() {
        let (url, requests) = serve(|_, body| (200, lengths(body), 0.0));
        // A variable that every process has.
        let config = |variable: &str| HttpReward {
            token_env: Some(variable.into()),
            ..config(url.clone())
        };
        score(&config("PATH"), 1).unwrap();
        let expected = format!("Bearer {}", std::env::var("PATH").unwrap());
        assert_eq!(requests.lock().unwrap()[0].1, Some(expected));
        let error = score(&config("COLLIMATE_NO_SUCH_TOKEN"), 1).unwrap_err();
        assert!(error.contains("COLLIMATE_NO_SUCH_TOKEN"), "{error}");
    }
}
