'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const number = (value) => value.toLocaleString('en');
const percent = (share) => (share === 0 || share === 1 ? 100 * share : share < .0005 ? '<0.1' : (100 * share).toFixed(1)) + ' %';
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
const LEVELS = 8;

// ---- What the data says ----

const DIGIT = new Uint8Array(128);
[...'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'].forEach((c, i) => DIGIT[c.charCodeAt(0)] = i);

/** Calls visit(position) for every position of an encoded set: gaps, 5 bits a digit, lowest first. */
function eachPosition(set, visit) {
  let expected = 0, gap = 0, shift = 0;
  for (let i = 0; i < set.length; ++i) {
    const digit = DIGIT[set.charCodeAt(i)];
    gap |= (digit & 31) << shift;
    shift += 5;
    if (digit < 32) {
      visit(expected + gap);
      expected += gap + 1;
      gap = shift = 0;
    }
  }
}

const roles = data.roles;
const selects = (role) => role === 'Select' || role === 'Scan';
const readsSelected = (role) => role === 'Sparse' || role === 'Scan';
const selectLayers = roles.flatMap((role, layer) => selects(role) ? [layer] : []);
const sparseLayers = roles.flatMap((role, layer) => readsSelected(role) ? [layer] : []);
/** "Sparse", "Scan" or both, for sentences on the layers that do not read everything. */
const sparseName = ['Sparse', 'Scan'].filter((role) => roles.includes(role)).join(' and ');
const prompt = data.document + data.question;

// Spans of whole characters: text, first position, number of positions.
const wide = new Map(data.text.wide);
const spans = [];
const spanOf = [];  // of every position
for (const [index, text] of data.text.texts.entries()) {
  const count = wide.get(index) || 1;
  spans.push({text, first: spanOf.length, count});
  for (let i = 0; i < count; ++i) spanOf.push(index);
}
const positions = spanOf.length;

const steps = data.steps.map((step, index) => {
  const read = data.first + index;
  const masses = new Float32Array(step.mass.length / 2);  // [layers * heads]
  for (let i = 0; i < masses.length; ++i) {
    masses[i] = (DIGIT[step.mass.charCodeAt(2 * i)] * 64 + DIGIT[step.mass.charCodeAt(2 * i + 1)]) / 4095;
  }
  const layers = roles.map((_, layer) => mean(headMasses(masses, layer)));
  return {
    read, sets: step.sets, probability: step.p, masses, layers, answers: read + 1 >= prompt,
    mass: sparseLayers.length ? mean(sparseLayers.map((layer) => layers[layer])) : 1,
  };
});
const answerSteps = steps.filter((step) => step.answers);
const answerMass = roles.map((_, layer) => mean(answerSteps.map((step) => step.layers[layer])));

function headMasses(masses, layer) { return masses.subarray(layer * data.heads, (layer + 1) * data.heads); }

/** The text of the token at a position, with what cannot be seen made visible. */
function tokenText(position) {
  const text = position < positions ? spans[spanOf[position]].text : data.end || 'the end';
  return text.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/^ +$/, (spaces) => '␣'.repeat(spaces.length)) || '∅';
}

// ---- What is shown ----

const state = {view: 'answer', step: 0, layer: -1, unit: -1, focus: sparseLayers[0] || 0, pin: -1};
state.step = Math.max(steps.findIndex((step) => step.answers), 0);
let share = new Float32Array(positions);  // of the sets shown that hold each position
let passages = [];

/** Every set of a step that is shown: those of the chosen layer and unit, or of all. */
function eachSet(step, visit) {
  step.sets.forEach((units, layer) => {
    if (state.layer >= 0 && layer !== state.layer) return;
    units.forEach((set, unit) => {
      if (state.unit < 0 || unit === state.unit) visit(set);
    });
  });
}

const shownSteps = () => state.view === 'answer' ? answerSteps : steps.slice(state.step, state.step + 1);

function countShares() {
  share = new Float32Array(positions);
  let sets = 0;
  for (const step of shownSteps()) {
    eachSet(step, (set) => {
      ++sets;
      eachPosition(set, (position) => ++share[position]);
    });
  }
  if (sets) for (let i = 0; i < positions; ++i) share[i] /= sets;
}

const level = (value) => value > 0 ? Math.max(1, Math.ceil(LEVELS * value - 1e-4)) : 0;

// ---- The text ----

/** Makes one span per token, in parts that end at line breaks so that the browser lays out only those in view. */
function drawText() {
  const text = $('text');
  const sections = [['Document', 0, data.document], ['Question', data.document, prompt], ['Answer', prompt, positions]];
  for (const [name, first, last] of sections) {
    if (first === last) continue;
    text.append(element('h3', {textContent: `${name}: ${number(last - first)} tokens`}));
    let part = null;
    for (let index = spanOf[first]; index < spans.length && spans[index].first < last; ++index) {
      const span = spans[index];
      if (!part || (part.childElementCount > 200 && spans[index - 1].text.endsWith('\n'))) {
        part = element('div', {className: 'part'});
        text.append(part);
      }
      span.node = element('span', {textContent: span.text});
      span.node.index = index;
      span.heat = span.flags = '';
      part.append(span.node);
    }
  }
}

/** Touches only the spans whose look changes. */
function shadeText() {
  const single = state.view === 'token' && steps.length;
  const read = single ? steps[state.step].read : positions;
  for (const span of spans) {
    let most = 0;
    for (let i = 0; i < span.count; ++i) most = Math.max(most, share[span.first + i]);
    const heat = level(most);
    const flags = (span.first > read ? ' later' : '') +
        (read >= span.first && read < span.first + span.count ? ' now' : '') +
        (state.pin >= span.first && state.pin < span.first + span.count ? ' pin' : '');
    if (heat === span.heat && flags === span.flags) continue;
    span.heat = heat;
    span.flags = flags;
    span.node.className = (heat ? 'heat' + heat : '') + flags;
  }
}

const BINS = Math.min(240, positions);
function drawMap() {
  const values = Array.from({length: BINS}, (_, bin) => mean(
      share.subarray(Math.floor(bin * positions / BINS), Math.floor((bin + 1) * positions / BINS))));
  const most = Math.max(...values, 1e-9);
  // A square root, or the sinks and the recent positions would leave nothing of the rest to be seen.
  values.forEach((value, bin) => $('map').children[bin].style.height = 100 * Math.sqrt(value / most) + '%');
  const top = passages.slice(0, 3).map((passage) => number(passage.first)).join(', ');
  $('map').setAttribute('aria-label', 'Where in the context the selected positions are' + (top ? `: most at ${top}` : ''));
}

/** The first span of `list` whose lower edge is below `edge`; rows only ever go down. */
function firstBelow(list, edge) {
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].getBoundingClientRect().bottom > edge) high = middle; else low = middle + 1;
  }
  return list[low];
}

function markView() {
  const box = $('text').getBoundingClientRect();
  const parts = $('text').getElementsByClassName('part');
  if (!parts.length) return;
  const at = (edge) => spans[firstBelow(firstBelow(parts, edge).children, edge).index].first / positions * 100;
  const first = at(box.top), last = at(box.bottom);
  Object.assign($('map').lastChild.style, {left: first + '%', width: Math.max(last - first, .4) + '%'});
}

/** Brings a position to the middle of the text, without moving the page. */
function scrollTo(position) {
  const text = $('text'), node = spans[spanOf[position]].node;
  const go = () => {
    const box = text.getBoundingClientRect();
    text.scrollTop += node.getBoundingClientRect().top - box.top - box.height / 2;
  };
  go();
  requestAnimationFrame(go);  // again when the parts that came into view have their real heights
}

function jump(position) {
  const box = $('text').getBoundingClientRect();
  if (box.bottom < 200 || box.top > innerHeight - 200) $('reading').scrollIntoView();
  scrollTo(position);
  pin(position);
}

// ---- Passages: runs of selected positions that no rule reserves ----

function findPassages() {
  const shown = shownSteps();
  passages = [];
  if (!shown.length) return;
  const end = shown[0].read + 1 - Math.max(data.recent, 1);
  let passage = null;
  for (let position = data.sinks; position < end; ++position) {
    if (!share[position]) continue;
    if (!passage || position - passage.last > 3 || position - passage.first > 40) {
      passage = {first: position, score: 0, most: 0};
      passages.push(passage);
    }
    passage.last = position;
    passage.score += share[position];
    passage.most = Math.max(passage.most, share[position]);
  }
  passages.sort((a, b) => b.score - a.score || a.first - b.first).splice(8);
}

function drawPassages() {
  const items = passages.map((passage) => {
    const from = spanOf[Math.max(passage.first - 4, 0)], to = spanOf[Math.min(passage.last + 4, positions - 1)];
    const words = spans.slice(from, Math.min(to + 1, from + 36)).map(
        (span) => share[span.first]
            ? element('mark', {className: 'heat' + level(share[span.first]), textContent: span.text}) : span.text);
    const where = passage.last > passage.first ? `${number(passage.first)} to ${number(passage.last)}` : number(passage.first);
    const button = element('button', {onclick: () => jump(passage.first)}, ...words,
                           element('small', {textContent: `positions ${where}, up to ${percent(passage.most)}`}));
    return element('li', {}, button);
  });
  $('passages').replaceChildren(...items);
  if (!items.length) $('passages').append(element('li', {className: 'note', textContent: 'None.'}));
}

// ---- One position ----

function describePosition(position) {
  const of = state.view === 'answer' ? 'of the sets over the answer' : 'of the sets at this token';
  return `Position ${number(position)} “${tokenText(position)}”: in ${percent(share[position])} ${of}`;
}

function pin(position) {
  state.pin = position;
  shadeText();
  drawPin();
}

function drawPin() {
  const position = state.pin;
  $('pinned').hidden = position < 0;
  if (position < 0) return;
  $('pinned-position').textContent = number(position);
  const bars = steps.map((step) => {
    let sets = 0, found = 0;
    eachSet(step, (set) => {
      ++sets;
      eachPosition(set, (other) => found += other === position);
    });
    return sets ? found / sets : 0;
  });
  const times = bars.filter((bar) => bar > 0).length;
  $('pinned-text').textContent = `“${tokenText(position)}” is selected at ${times} of ${steps.length} steps.`;
  $('pinned-steps').setAttribute('aria-label', $('pinned-text').textContent);
  $('pinned-steps').replaceChildren(...bars.map((bar) => {
    const made = element('i');
    made.style.height = 100 * bar + '%';
    return made;
  }));
  for (const [i, passage] of passages.entries()) {
    $('passages').children[i].firstChild.className = position >= passage.first && position <= passage.last ? 'here' : '';
  }
}
