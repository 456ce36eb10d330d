"""The look of the report: calm, readable by day and by night, in print and on a phone."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #55606e; --line: #d5dbe3;
  --paper: #ffffff; --tint: #f5f7f9; --alarm: #8c1510; --alarm-tint: #fdeceb; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #a3aebb; --line: #39424d; --paper: #171b21; --tint: #101318;
    --alarm: #ffb4ab; --alarm-tint: #3a1613; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 48px 56px; background: var(--paper); }
h1, h2 { font-family: Charter, "Bitstream Charter", Georgia, "Liberation Serif", serif;
  line-height: 1.2; font-weight: 600; }
h1 { font-size: 34px; margin: 4px 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 23px; margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 17px; margin: 0 0 8px; }
p { margin: 8px 0; max-width: 76ch; }
.kicker { color: var(--soft); letter-spacing: .06em; text-transform: uppercase; font-size: 13px; }
.soft, figcaption, caption { color: var(--soft); }
.alarm { border: 1px solid var(--alarm); border-left-width: 8px; background: var(--alarm-tint);
  color: var(--alarm); padding: 12px 20px; margin: 24px 0; }
.alarm p { max-width: none; }
.alarm strong { display: block; font-size: 18px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0 24px;
  margin: 28px 0 0; padding: 4px 0; border-top: 2px solid var(--ink);
  border-bottom: 1px solid var(--line); }
.figures div { padding: 12px 0; display: flex; flex-direction: column; }
.figures dt { color: var(--soft); font-size: 14px; }
.figures dd { margin: 0; }
.figures .value { font-size: 29px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.figures .note { font-size: 14px; color: var(--soft); }
.curves { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px 40px; }
figure { margin: 12px 0 0; break-inside: avoid; }
figcaption { font-size: 14px; margin-top: 8px; }
figure svg { width: 100%; height: auto; display: block; }
svg text { font: 14px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  fill: var(--ink); }
svg .tick { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-opacity: .6; }
svg .axis { stroke: var(--soft); }
svg .mark { stroke: var(--soft); stroke-dasharray: 3 4; }
svg text.mark { stroke: none; fill: var(--soft); }
svg .band { fill-opacity: .13; stroke: none; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 20px; padding: 0;
  margin: 10px 0 0; font-size: 14px; }
.legend li { overflow-wrap: anywhere; }
svg.sample { width: 28px; height: 10px; display: inline-block; vertical-align: middle;
  margin-right: 7px; }
.wide { overflow-x: auto; margin: 12px 0 20px; }
table { border-collapse: collapse; width: 100%; font-size: 15px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: 14px; padding-bottom: 8px; }
th, td { text-align: left; vertical-align: top; padding: 7px 16px 7px 0;
  border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 2px solid var(--ink); font-size: 14px; vertical-align: bottom; }
tbody th { font-weight: 600; }
.num { text-align: right; white-space: nowrap; }
thead .num { white-space: normal; }
.name { white-space: nowrap; }
td ul { min-width: 14em; }
.bad { color: var(--alarm); font-weight: 600; }
ul.plain { list-style: none; margin: 0; padding: 0; }
.topics { display: grid; grid-template-columns: 13em minmax(0, 1fr); gap: 10px 24px;
  margin: 12px 0; }
.topics dt { font-weight: 600; }
.topics dd { margin: 0; max-width: 76ch; overflow-wrap: anywhere; }
details { margin: 16px 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--tint); border: 1px solid var(--line); padding: 12px 16px;
  font-size: 13px; line-height: 1.45; }
code { font-size: 13px; overflow-wrap: anywhere; }
footer { margin-top: 48px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 14px;
  color: var(--soft); }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
@media (max-width: 860px) { .curves { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 600px) {
  main { padding: 20px 16px 40px; }
  h1 { font-size: 27px; }
  .topics { grid-template-columns: minmax(0, 1fr); gap: 2px; }
  .topics dd { margin-bottom: 12px; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures .value { font-size: 24px; }
  svg text { font-size: 20px; }
}
@media print {
  body, main { background: none; }
  main { max-width: none; padding: 0; }
  body { font-size: 10.5pt; }
  .wide { overflow: visible; }
  h2 { break-after: avoid; }
  tr, .topics dd { break-inside: avoid; }
  details { display: none; }
}
"""
