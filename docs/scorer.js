// Order of the search's results: guides and reference before decision records and changes.
var Scorer = {
  score: ([page, title, anchor, description, score]) =>
    /^(docs\/adr\/|CHANGELOG|CONTRIBUTING)/.test(page) ? score - 20 : score,
  // The defaults of Sphinx.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
