"""The page of ``report.html``: one Jinja template with its style, no script, nothing external.

It is a Python module because a Flower App bundle drops other file types.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#fdfdfc;--panel:#f4f5f3;--ink:#1b1e23;--muted:#5c6570;--line:#d9dde2;
--good:#00684a;--bad:#a84300;--unclear:#5c6570;--plain:#00598c}
@media (prefers-color-scheme:dark){:root{--paper:#16191d;--panel:#1f2429;--ink:#e8eaed;--muted:#a8b0ba;
--line:#3a4048;--good:#35c79b;--bad:#f2894a;--unclear:#a8b0ba;--plain:#4fb0ea}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.6rem 1.1rem 4rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{font-size:1.55rem;line-height:1.28;margin:.2rem 0 1rem;text-wrap:pretty;max-width:46rem}
h2{font-size:1.2rem;margin:2.8rem 0 .5rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p,figcaption,.answer ul,dl{max-width:44rem}
.eyebrow,figcaption,caption,.small{color:var(--muted);font-size:.875rem}
.eyebrow{margin:0}
.answers{display:grid;gap:.8rem;max-width:47rem}
.answer{background:var(--panel);padding:.7rem 1rem .5rem;border-radius:4px}
.answer h2{border:0;padding:0;margin:0;font-size:.875rem;color:var(--tone);font-weight:600}
.answer p{margin:.15rem 0 .3rem;font-weight:600}
.answer ul{margin:.2rem 0 .3rem;padding-left:1.1rem}
.answer li{margin:.15rem 0}
.good{--tone:var(--good)}.bad{--tone:var(--bad)}.unclear{--tone:var(--unclear)}.plain{--tone:var(--plain)}
.cautions{margin:1rem 0 0;padding:0;list-style:none;max-width:44rem}
.cautions li{margin:.25rem 0;color:var(--muted);font-size:.9375rem}
.scroll{overflow-x:auto;margin:.8rem 0;border-bottom:1px solid var(--line)}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--plain);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 .4rem;caption-side:top}
th,td{padding:.36rem .6rem;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{vertical-align:bottom;white-space:normal;font-weight:600;border-top:0;min-width:4.4rem;
line-height:1.3}
th:first-child,td.text,th.text{text-align:left}
tbody th{font-weight:600;position:sticky;left:0;background:var(--paper)}
tbody th.wide{white-space:normal;min-width:8.5rem}
tr.part th{font-weight:400;color:var(--muted);padding-top:.9rem}
tr.main th,tr.main td{background:var(--panel)}
figure{margin:1.2rem 0}
figure img{display:block;width:100%;max-width:40rem;height:auto}
.pair{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}
dt{font-weight:600;margin-top:.7rem}dd{margin:0}
dl.arms{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}
dl.arms dt{margin:0}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--plain)}
code{font-size:.875em;overflow-wrap:anywhere}
td.text{white-space:normal;min-width:6.5rem}
@media print{body{max-width:none}.answer{break-inside:avoid}figure,table{break-inside:avoid}}
"""

PAGE = """
{%- macro picture(item) -%}
{% if item %}<figure><picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ item.dark }}">
<img src="{{ item.light }}" alt="{{ item.alt }}"></picture>
<figcaption>{{ item.caption }}</figcaption></figure>{% endif %}
{%- endmacro -%}
{%- macro arms_table(caption, arms, references) -%}
<div class="scroll" role="region" aria-label="{{ caption }}" tabindex="0"><table>
<caption>{{ caption }}</caption>
<thead><tr><th scope="col">Arm</th><th scope="col">Accuracy, mean of users</th>
<th scope="col">95% interval</th><th scope="col">Bottom decile</th>
<th scope="col">Against the majority</th><th scope="col">Users worse than shared</th>
<th scope="col">… significantly</th><th scope="col">Universal values</th>
<th scope="col">… worst user</th><th scope="col">ε, one record</th></tr></thead>
<tbody>
{% for key, arm in arms %}<tr{% if key == "dual" %} class="main"{% endif %}>
<th scope="row">{{ key|name }}</th><td>{{ arm.accuracy|percent }}</td><td>{{ arm.ci95|interval }}</td>
<td>{{ arm.bottom_decile|percent }}</td><td>{{ arm.minority_accuracy|percent }}</td>
<td>{{ arm.harmed_share|percent }}</td><td>{{ arm.harmed_share_significant|percent }}</td>
<td>{{ arm.values_accuracy|percent }}</td><td>{{ arm.values_worst_user|percent }}</td>
<td>{{ arm.epsilon_record|number(2) if arm.epsilon_record is not none else "none" }}</td></tr>
{% endfor %}</tbody>
{% if references %}<tbody><tr class="part"><th scope="rowgroup" colspan="10">Simple references, no language
model, all users' votes in one place</th></tr>
{% for key, entry in references %}<tr><th scope="row" class="wide">{{ key|name }}</th>
<td>{{ entry.accuracy|percent }}</td><td></td><td>{{ entry.bottom_decile|percent }}</td>
<td>{{ entry.minority_accuracy|percent }}</td><td></td><td></td><td></td><td></td><td>none</td></tr>
{% endfor %}</tbody>{% endif %}
</table></div>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Duet report: {{ population.name }}</title>
<style>{{ style|safe }}</style></head><body>
<header><p class="eyebrow">Duet report · {{ population.name }} · {{ population.users|count }} users
({{ "simulated" if population.simulated else "real people" }})</p>
<h1>{{ first.headline }}</h1></header>
<main>
<p>Accuracy is the share of held-back pairs of texts that a model orders as the user did; guessing gives 50%.
Shared is one model for everybody, dual adds a personal adapter for each user.</p>
<div class="answers">
{% for answer in first.answers %}<section class="answer {{ answer.tone }}">
<h2>{{ answer.question }}</h2><p>{{ answer.headline }}</p>
{% if answer.sentences %}<ul>{% for text in answer.sentences %}<li>{{ text|capitalized }}</li>
{% endfor %}</ul>{% endif %}</section>
{% endfor %}</div>
<ul class="cautions">{% for text in first.cautions %}<li>Mind: {{ text }}</li>
{% endfor %}</ul>

<h2>Who was measured</h2>
<p>{{ (population.about or population.name)|stop }} {{ population.users|count }} users, of whom
{{ population.federated_users|count }} took part in the federation and the others only personalised;
{{ population.texts|count }} texts. Records by use:
{% for key, value in population.records.items() %}{{ key|lower|replace("_", " ") }} {{ value|count }}
{{- ", " if not loop.last }}{% endfor %}.
{% if contexts %}Contexts: {{ contexts|join(", ") }}.{% endif %}</p>

<h2>All arms</h2>
<p>An arm is one way to serve the same users; all arms are asked about the same pairs of texts, held back from
training.</p>
<dl class="arms">{% for key, arm in arms %}<dt>{{ key|name }}</dt><dd>{{ about[key] }}</dd>{% endfor %}</dl>
{{ arms_table("Texts that others' training contains", arms, references) }}
{{ picture(pictures.accuracy) }}
{% if arms_unseen %}
<h3>Texts that nobody's training contained (unseen)</h3>
<p>Here nothing can be remembered about a text; the model has to understand it.</p>
{{ arms_table("Texts new to everybody", arms_unseen, references_unseen) }}
{{ picture(pictures.accuracy_unseen) }}
{% endif %}

<h2>Who gained and who lost</h2>
<div class="pair">{{ picture(pictures.change_dual) }}{{ picture(pictures.change_dual_dp) }}</div>
{{ picture(pictures.records) }}
{{ picture(pictures.groups) }}
{% for title, names, rows in breakdowns %}
<details><summary>{{ title }}, as a table</summary>
<div class="scroll" role="region" aria-label="{{ title }}" tabindex="0"><table>
<thead><tr><th scope="col">{{ title }}</th><th scope="col">Users</th>
{% for key in names %}<th scope="col">{{ key|name }}</th>{% endfor %}</tr></thead><tbody>
{% for label, users, values in rows %}<tr><th scope="row" class="wide">{{ label }}</th>
<td>{{ users|count }}</td>{% for value in values %}<td>{{ value|percent }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
{% endfor %}
<details><summary>More measures of each arm</summary>
<div class="scroll" role="region" aria-label="More measures of each arm" tabindex="0"><table>
<thead><tr><th scope="col">Arm</th><th scope="col">Users counted</th>
<th scope="col">Accuracy over all pairs</th>
<th scope="col">Against the majority, 95% interval</th><th scope="col">Mean margin</th>
<th scope="col">Largest fall in values against shared (points)</th>
<th scope="col">Largest fall in values against its own shared adapter (points)</th>
<th scope="col">Length shift (words)</th>
<th scope="col">Users never in the federation</th></tr></thead><tbody>
{% for key, arm in arms %}<tr><th scope="row">{{ key|name }}</th><td>{{ arm.users|count }}</td>
<td>{{ arm.pair_accuracy|percent }}</td><td>{{ arm.minority_ci95|interval }}</td>
<td>{{ arm.mean_margin|number(3) }}</td>
<td>{{ arm.values_drop_worst|number(1) }}</td>
<td>{{ arm.values_drop_personal|number(1) }}</td>
<td>{{ arm.length_shift_words|number(1) }}</td><td>{{ arm.accuracy_unfederated|percent }}</td></tr>
{% endfor %}</tbody></table></div></details>

<h2>Privacy</h2>
{% if privacy %}
<p>Differential privacy bounds what anybody can learn about one unit of data from what he sees. An ε
(epsilon) means nothing without its unit and relation, so they stand beside it. Three parties see three
things; whoever is not named in a row has no guarantee by it.</p>
<div class="scroll" role="region" aria-label="Guarantees of each arm" tabindex="0"><table>
<caption>What each arm guarantees, to whom. Arms not listed have no guarantee</caption>
<thead><tr><th scope="col">Arm</th><th scope="col" class="text">Against</th>
<th scope="col" class="text">who sees</th>
<th scope="col">ε of this run</th><th scope="col">ε of a lifetime, at most</th><th scope="col">δ</th>
<th scope="col" class="text">Unit</th><th scope="col" class="text">Relation</th>
<th scope="col" class="text">Note</th></tr></thead><tbody>
{% for key, entry in privacy %}{% for view in entry.views or () %}<tr><th scope="row">{{ key|name }}</th>
<td class="text">{{ view.view|adversary }}</td><td class="text">{{ view.sees }}</td>
<td>{{ "none" if view.epsilon is none else view.epsilon|number(2) }}</td>
<td>{{ "none" if view.lifetime is none else view.lifetime|number(2) }}</td><td>{{ view.delta|compact }}</td>
<td class="text">one {{ view.unit }}</td><td class="text">{{ view.relation }}</td>
<td class="text">{{ view.note }}</td></tr>
{% endfor %}{% endfor %}</tbody></table></div>
<div class="scroll" role="region" aria-label="Mechanisms of each arm" tabindex="0"><table>
<caption>What was done to a record, both adapters together</caption>
<thead><tr><th scope="col">Arm</th><th scope="col">ε</th><th scope="col">δ</th>
<th scope="col" class="text">Unit</th>
<th scope="col">&sigma; shared</th><th scope="col">&sigma; personal</th><th scope="col">z of the server</th>
<th scope="col">Steps shared</th><th scope="col">Steps personal</th><th scope="col">Sampling rate q</th>
<th scope="col">Clip C</th><th scope="col">Noise from</th></tr></thead><tbody>
{% for key, entry in privacy %}<tr><th scope="row">{{ key|name }}</th>
<td>{{ entry.epsilon_record|number(2) }}</td><td>{{ entry.delta|compact }}</td>
<td class="text">one {{ entry.unit }}</td>
<td>{{ entry.sigma_shared|number(2) }}</td><td>{{ entry.sigma_personal|number(2) }}</td>
<td>{{ entry.user_noise|number(2) }}</td>
<td>{{ entry.shared_steps|count }}</td><td>{{ entry.personal_steps|count }}</td>
<td>{{ entry.sampling_rate|compact }}</td><td>{{ entry.clip|compact }}</td>
<td class="text">{{ "the system" if entry.noise == "system" else "the seed" }}</td></tr>
{% endfor %}</tbody></table></div>
<ul>{% for text in promises %}<li>{{ text }}</li>{% endfor %}</ul>
{% else %}<p>No arm was trained with differential privacy. Nothing here bounds what the trained adapters
reveal about their users' records.</p>{% endif %}

<h2>Cost</h2>
{% if costs %}
<p>Bytes as really serialised, for one user and one round; seconds for all users together, on the machine that
ran this.</p>
<div class="scroll" role="region" aria-label="Cost of each arm" tabindex="0"><table>
<thead><tr><th scope="col">Arm</th><th scope="col">Sent by a user</th><th scope="col">Received by a user</th>
<th scope="col">Both, whole run</th><th scope="col">Training</th><th scope="col">Rounds</th>
<th scope="col">Replies</th><th scope="col">Rejected</th></tr></thead><tbody>
{% for row in costs %}<tr><th scope="row">{{ row.arm|name }}</th><td>{{ row.up|size }}</td>
<td>{{ row.down|size }}</td><td>{{ row.whole|size }}</td><td>{{ row.train|duration }}</td>
<td>{{ row.rounds|count }}</td><td>{{ row.replies|count }}</td><td>{{ row.rejected|count }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if times %}<p>{% for key, value in times %}{{ key|capitalized }}: {{ value|duration }}
{{- "; " if not loop.last }}{% endfor %}.</p>{% endif %}
{{ picture(pictures.curves) }}

<h2>How it was measured</h2>
<dl>{% for term, meaning in terms %}<dt>{{ term }}</dt><dd>{{ meaning }}</dd>
{% endfor %}</dl>

<h2>Configuration</h2>
<details><summary>{{ config|length }} settings</summary>
<div class="scroll" role="region" aria-label="Configuration" tabindex="0"><table>
<thead><tr><th scope="col">Setting</th><th scope="col" style="text-align:left">Value</th></tr></thead><tbody>
{% for key, value in config %}<tr><th scope="row" class="wide"><code>{{ key }}</code></th>
<td class="text"><code>{{ value }}</code></td></tr>
{% endfor %}</tbody></table></div></details>
<p class="small">Duet {{ version }}, report schema {{ schema }}. The same figures for programs are in
<code>report.json</code>; one row a user is in <code>users.parquet</code>.</p>
</main></body></html>
"""

TERMS: tuple[tuple[str, str], ...] = (
    (
        "Test pair",
        "Two texts of which the user preferred one, held back from training. Votes give all pairs of a text "
        "that the user agreed with and one that the user disagreed with.",
    ),
    (
        "Accuracy",
        "The share of a user's test pairs that the model orders as the user did (a tie counts one half), "
        "then the mean over users, so that a user with few pairs counts as much as one with many.",
    ),
    (
        "95% interval",
        "From a bootstrap over users: how much the mean would move with other users of the same kind. "
        "Differences between two arms are taken user by user, which makes their interval narrower than the "
        "arms' own; the verdict at the top rests on that paired interval.",
    ),
    ("Bottom decile", "One user in ten is served this badly or worse: an average hides them."),
    (
        "Against the majority",
        "Pairs on which the user's choice is the text that the federated users like less on average in the "
        "training records; all such pairs of all users together. Here personalization must show itself: a "
        "model of the majority fails by definition.",
    ),
    (
        "Users worse than shared",
        "Users whose own accuracy is below that under the shared model. With few test pairs a user, many "
        "are below by luck. “Significantly” counts those that a one-sided test at 5% on their own pairs "
        "calls worse; of these, too, some are chance, and the share to expect from chance stands beside it.",
    ),
    (
        "Universal values",
        "Pairs on which everybody should agree (honest over dishonest, harmless over harmful). "
        "Personalization must not lower them for anybody, so the worst user and the largest fall below "
        "shared are given.",
    ),
    ("Margin", "Score of the preferred text minus that of the other: how sure the model is."),
    (
        "Length shift",
        "How many words longer (+) or shorter are the texts that the arm prefers than those that shared "
        "prefers: a check that it has not just learned to like length.",
    ),
    (
        "ε (epsilon) and δ (delta)",
        "Adding or removing one unit of data changes the probability of any outcome of the training by at "
        "most a factor of e to the ε, except with probability δ. Smaller is more private.",
    ),
    (
        "\N{GREEK SMALL LETTER SIGMA}, q, C",
        "Noise relative to the clip; share of records in a step; bound on one record's gradient.",
    ),
)
"""Definitions of the measures for a newcomer; ``simulation.metrics`` computes them."""
