"""How a report looks, on a screen and on paper."""

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --tint: #f4f6f8; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
h4 { font-size: .95rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .5rem 0 1rem; }
ul { max-width: 48rem; margin: .5rem 0; padding-left: 1.2rem; }
li { margin: .35rem 0; overflow-wrap: anywhere; }
.summary { background: var(--tint); border-left: 4px solid var(--accent); padding: 1rem 1.25rem; }
.notes { background: #fff8e6; border-left: 4px solid #e69f00; padding: .5rem 1.25rem;
  margin-top: 1rem; }
.notes h2 { border: 0; margin: .25rem 0; font-size: 1.05rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin-bottom: .75rem; }
.tiles div { flex: 1 1 9rem; background: #fff; border: 1px solid var(--line); border-radius: 4px;
  padding: .6rem .9rem; }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .35rem .75rem;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; max-width: 9.5rem; }
th.text, td.text { text-align: left; max-width: 40rem; overflow-wrap: break-word; }
th:first-child, td:first-child { padding-left: 0; min-width: 6.5rem;
  max-width: 16rem; }
small { display: block; color: var(--soft); font-size: .75rem; font-weight: 400;
  white-space: nowrap; }
figure { display: inline-block; vertical-align: bottom; max-width: 100%;
  margin: 1.25rem 1rem 1.5rem 0; break-inside: avoid; }
figcaption { max-width: 48rem; font-size: .875rem; color: var(--soft); margin-bottom: .4rem; }
figcaption b { color: var(--ink); }
img { display: block; width: 100%; height: auto; }
details { margin: .75rem 0; border: 1px solid var(--line); border-radius: 4px;
  padding: .4rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
td code { white-space: pre-wrap; overflow-wrap: anywhere; }
@page { margin: 15mm; }
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2, h3, figcaption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
