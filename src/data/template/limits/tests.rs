use std::collections::BTreeMap;
use std::time::Instant;

use crate::data::DataError;
use crate::data::records::Message;
use crate::data::template::{ChatTemplate, GenerationPrompt};

fn template(source: &str) -> Result<ChatTemplate, String> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let compiled = ChatTemplate::new(source, special).map_err(|e| e.to_string())?;
    Ok(compiled.at("m/chat_template.jinja"))
}

fn render(source: &str) -> Result<String, String> {
    let messages = [Message::new("user", "hi"), Message::new("assistant", "ho")];
    let rendered = template(source)?.render(&messages, GenerationPrompt::Omit);
    rendered.map_err(|e| e.to_string())
}

/// A template that must end soon with an error, whose words these are.
#[track_caller]
fn refused(source: &str, says: &str) {
    let start = Instant::now();
    let error = render(source).expect_err("an error");
    assert!(error.contains(says), "{:.200}: {error:.500}", source);
    assert!(error.len() < 3000, "{:.200}: {} bytes", source, error.len());
    // Steps are bounded, so this is slow machines' room.
    assert!(start.elapsed().as_secs() < 60, "{:.200}", source);
}

/// A loop of n passes over `body`.
fn times(n: usize, body: &str) -> String {
    format!("{{% for i in range({n}) %}}{body}{{% endfor %}}")
}

const NAMESPACE: &str = "{% set ns = namespace(a=[1], s='aaaaaaaaaaaaaaaa') %}";

#[test]
fn loops_and_recursion_without_end_run_out_of_steps() {
    let steps = "takes more than 10 million steps";
    refused(&times(10_000, &times(10_000, "")), steps);
    refused(&times(10_000, &times(10_000, "xxxxxxxxxxxxxxxx")), steps);
    let twice = "{% macro m(x) %}{% if x > 0 %}{{ m(x-1) }}{{ m(x-1) }}{% endif %}{% endmacro %}\
                 {{ m(24) }}";
    refused(twice, steps);
    let rendered = render("{% macro m(x) %}{{ m(x+1) }}{% endmacro %}{{ m(0) }}");
    assert!(rendered.unwrap_err().contains("recursion limit"));
}

#[test]
fn text_without_end_runs_out_of_steps() {
    let steps = "takes more than 10 million steps";
    let doubling = format!("{NAMESPACE}{}", times(60, "{% set ns.s = ns.s ~ ns.s %}"));
    refused(&doubling, steps);
    refused("{{ 'a\nb' | indent(10000000000) }}", steps);
    refused("{{ '%9999999999d' | format(1) }}", steps);
    refused(
        "{% set a = 'a' * 100000 %}{{ a.replace('a', a).replace('a', a) }}",
        steps,
    );
    refused("{{ 'a' * 4000000000 }}", steps);
    // The engine's own limit.
    let large = "repeated sequence is too large";
    refused("{{ ([1] * 1000000000) | join }}", large);
    refused("{{ [1] * 1000000000 }}", large);
    refused("{{ ([1] * 1000000000) | string }}", large);
    refused("{{ ([1] * 1000000000) | tojson }}", large);
    refused("{{ ([1] * 1000000000) | pprint }}", large);
    refused("{{ ([1] * 1000000000).count(1) }}", large);
    refused("{{ ''.join([''] * 1000000000) }}", large);
    refused(
        "{{ '{:9999999999}'.format(1) }}",
        "pads text to 10000 characters",
    );
    refused(
        "{{ [[1]] | tojson(indent=9999999999) }}",
        "indents JSON by 9999999999 spaces",
    );
    refused(
        "{{ [1] | tojson(separators=['x' * 10000, ':']) }}",
        "separates JSON by 10001 bytes",
    );
    let lists = format!("{NAMESPACE}{}", times(60, "{% set ns.a = ns.a + ns.a %}"));
    refused(&lists, steps);
}

#[test]
fn values_that_hold_themselves_or_nest_without_end_are_refused() {
    let deep = "nests lists and maps more than 100 deep";
    refused(
        &format!("{NAMESPACE}{{% set ns.a = ns %}}{{{{ ns }}}}"),
        "stores a namespace in a namespace",
    );
    refused(
        &format!("{NAMESPACE}{{% set ns.a = [{{'b': ns}}] %}}"),
        "stores a namespace in a namespace",
    );
    for nested in [
        "[ns.a]",
        "{'a': ns.a}",
        "(ns.a, 1)",
        "[ns.a] | list",
        "ns.a | batch(1) | list",
    ] {
        let body = format!("{{% set ns.a = {nested} %}}");
        refused(&format!("{NAMESPACE}{}", times(10_000, &body)), deep);
    }
    // One holds the one before it twice: 2 to the power of its depth.
    let twice = format!("{NAMESPACE}{}", times(90, "{% set ns.a = [ns.a, ns.a] %}"));
    refused(&twice, "takes more than 10 ");
    // Lazy slices of slices.
    let slices = format!(
        "{NAMESPACE}{}{{{{ ns.a }}}}",
        times(10_000, "{% set ns.a = ns.a[0:] %}")
    );
    assert_eq!(render(&slices).as_deref(), Ok("[1]"));
}

#[test]
fn deep_source_is_refused_before_it_is_compiled() {
    let tokens = "has a tag of more than 2000 tokens in line 1";
    for part in ["not ", "-", "1 + ", "1 ~ ", "1 if 1 else "] {
        refused(&format!("{{{{ {}1 }}}}", part.repeat(50_000)), tokens);
    }
    refused(
        &format!("{{{{ messages{} }}}}", ".a".repeat(100_000)),
        tokens,
    );
    refused(&format!("{{{{ 1{} }}}}", "|string".repeat(100_000)), tokens);
    let elifs = "{% elif 0 %}".repeat(50_000);
    refused(
        &format!("{{% if 0 %}}{elifs}{{% endif %}}"),
        "more than 2000 elif tags",
    );
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(900));
    refused(&nested, "recursion");
    let nested = format!(
        "{}{}",
        "{% if 1 %}".repeat(5000),
        "{% endif %}".repeat(5000)
    );
    refused(&nested, "recursion");
    refused(&"x".repeat(2 << 20), "has 2097152 bytes");
}

#[test]
fn words_of_a_template_are_cut() {
    refused(
        "{{ raise_exception('x' * 1000000) }}",
        "m/chat_template.jinja: ",
    );
}

#[test]
fn errors_name_the_file() {
    refused(
        "{{ raise_exception('no') }}",
        "chat template: m/chat_template.jinja: line 1: no",
    );
}

#[test]
fn sets_mean_what_they_meant() {
    for (source, expected) in [
        ("{% set a, b = 1, 2 %}{{ a + b }}", "3"),
        ("{%- set a = 'x' if false else 'y' -%} {{ a }}", "y"),
        ("{% set a = {'b': [1, 2]} %}{{ a.b[1] }}", "2"),
        ("{% set a %}x={{ 1 }}{% endset %}{{ a }}", "x=1"),
        ("{% set a | upper %}x{% endset %}{{ a }}", "X"),
        (
            "{% set a = messages[1:] %}{{ a[0].content }}{{ a | length }}",
            "ho1",
        ),
        ("{% set a = 1 == 2 %}{{ a }}", "False"),
        ("{% set a = nothing %}{{ a is defined }}", "False"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
             {% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{# {% set x #}{% raw %}{% set y = 1 %}{% endraw %}{{ '%} set a = 1' }}",
            "{% set y = 1 %}%} set a = 1",
        ),
        ("{% set a = (1, 2) %}{{ a[1] }}", "2"),
        ("{% set t = 'a,b'.split(',') %}{{ t[1] }}", "b"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

/// The largest honest templates, with tools, thousands of messages and appended lists, keep far
/// below the bounds.
#[test]
fn long_conversations_are_rendered() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../../tests/golden/templates.json")).unwrap();
    let special: BTreeMap<String, String> =
        serde_json::from_value(golden["special_tokens"].clone()).unwrap();
    let turn = |i: usize| {
        let role = ["user", "assistant"][i % 2];
        Message::new(
            role,
            &format!("message {i} {}", "of some length ".repeat(20)),
        )
    };
    let messages: Vec<Message> = (0..10_000).map(turn).collect();
    let mut rendered = 0;
    for (name, source) in golden["templates"].as_object().unwrap() {
        let Some(source) = source.as_str() else {
            continue; // a list of named templates
        };
        let template = ChatTemplate::new(source, special.clone()).unwrap();
        match template.render(&messages, GenerationPrompt::Add) {
            Ok(text) => rendered += usize::from(text.contains("message 9998 ")),
            Err(error) => assert!(
                !error.to_string().contains("the template takes"),
                "{name}: {error}"
            ),
        }
    }
    assert!(rendered >= 3, "{rendered} of them");
    let appended = "{% set ns = namespace(all=[]) %}{% for m in messages %}\
                    {% set ns.all = ns.all + [m] %}{% endfor %}{{ ns.all | length }}";
    let text = template(appended)
        .unwrap()
        .render(&messages[..2000], GenerationPrompt::Omit);
    assert_eq!(text.unwrap(), "2000");
}

/// A template without end is no fault of a record: leaving out bad records does not go on with the
/// next one.
#[test]
fn an_exceeded_bound_is_told_from_a_refused_record() {
    let messages = [Message::new("user", "hi")];
    let render = |source: &str| {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        template
            .render(&messages, GenerationPrompt::Omit)
            .unwrap_err()
    };
    let endless = "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}";
    assert!(matches!(render(endless), DataError::TemplateBound(_)));
    let refusing = "{{ raise_exception('no') }}";
    assert!(matches!(render(refusing), DataError::Template(_)));
}
