// ---- Captured mass ----

/** One button a layer, made once. */
function drawChart() {
  const every = Math.ceil(roles.length / 16);
  roles.forEach((role, layer) => {
    const button = element('button', {className: role.toLowerCase(), onclick: () => focusLayer(layer)}, element('b'));
    if (layer % every === 0) button.append(element('small', {textContent: layer}));
    $('chart').append(button);
    const row = element('tr');
    for (const text of [layer, role, '', '']) row.append(element('td', {textContent: text}));
    $('mass').tBodies[0].append(row);
  });
  $('dense-key').textContent = roles.includes('Window') ? 'Dense, Window' : 'Dense';
  $('recurrent-key').hidden = !roles.includes('Recurrent');
}

/** A recurrent layer has no attention whose mass anything could capture. */
function massText(layer, share) {
  return roles[layer] === 'Recurrent' ? '–' : percent(share);
}

function drawMass() {
  const step = steps[state.step];
  const token = state.view === 'token' && step;
  $('mass-note').textContent = 'Share of its own attention that the positions a layer reads hold, mean of its heads; ' +
      (token ? 'bar: this token, line: mean of the answer.' : 'mean of the answer’s tokens.');
  roles.forEach((role, layer) => {
    const now = token ? step.layers[layer] : answerMass[layer];
    const button = $('chart').children[layer];
    button.style.setProperty('--h', 100 * now + '%');
    button.style.setProperty('--t', 100 * answerMass[layer] + '%');
    button.firstChild.hidden = !token || !readsSelected(role);
    button.tabIndex = layer === state.focus ? 0 : -1;
    button.classList.toggle('here', layer === state.focus);
    button.title = `Layer ${layer}, ${role}: ${massText(layer, now)}`;
    button.setAttribute('aria-label', button.title);
    button.setAttribute('aria-pressed', layer === state.focus);
    const cells = $('mass').tBodies[0].rows[layer].cells;
    cells[2].textContent = token ? massText(layer, step.layers[layer]) : '';
    cells[3].textContent = massText(layer, answerMass[layer]);
  });
  drawHeads();
}

/** The place among the layers that select of the one whose positions a layer reads; -1 for one that reads everything. */
function sourceOf(layer) {
  return ['Dense', 'Window', 'Recurrent'].includes(roles[layer]) ? -1 : selectLayers.filter((select) => select <= layer).length - 1;
}

function drawHeads() {
  const layer = state.focus, role = roles[layer];
  if (!role) return;
  const shown = shownSteps();
  const what = {
    Dense: 'reads everything.', Select: 'reads everything and selects.',
    Sparse: `reads what layer ${selectLayers[sourceOf(layer)]} selected:`,
    Scan: 'selects by a sketch of its keys and reads that:', Window: 'always reads the last positions, no others.',
    Recurrent: 'reads its state, no positions.',
  };
  $('layer-text').textContent = `Layer ${layer} (${role}) ${what[role]}`;
  const heads = readsSelected(role) ? Array.from({length: data.heads}, (_, head) => head) : [];
  $('heads').replaceChildren(...heads.flatMap((head) => {
    const value = mean(shown.map((step) => headMasses(step.masses, layer)[head]));
    const bar = element('span');
    bar.style.width = 100 * value + '%';
    return [element('span', {textContent: 'head ' + head}), element('div', {className: 'meter'}, bar),
            element('span', {textContent: percent(value)})];
  }));
}

function focusLayer(layer) {
  state.focus = Math.min(Math.max(layer, 0), roles.length - 1);
  const source = sourceOf(state.focus);
  if (source >= 0) state.layer = source;
  update();
  $('chart').children[state.focus].focus();
}

// ---- In words ----

function listed(values) {
  return values.length < 2 ? values.join('') : values.slice(0, -1).join(', ') + ' and ' + values.at(-1);
}

function summaryParts() {
  if (!steps.length) return ['No step was decoded: there is nothing to see but the text.'];
  const layers = state.layer < 0 ? selectLayers : [selectLayers[state.layer]];
  const many = layers.length > 4;
  const who = (many ? `${layers.length} layers` : (layers.length > 1 ? 'Layers ' : 'Layer ') + listed(layers)) +
      (state.unit < 0 ? '' : `, ${data.unit} ${state.unit},`);
  let different = 0;
  for (const value of share) different += value > 0;
  const quote = (position) => element('q', {textContent: tokenText(position)});
  if (state.view === 'answer') {
    const parts = [`${number(answerSteps.length)} steps wrote the answer. `];
    parts.push(different ? `${who} selected ${number(different)} different positions of ${number(positions)} ` +
        `(${percent(different / positions)}). ` : 'The context fits the budget, so that every layer read all of it. ');
    const mass = mean(answerSteps.map((step) => step.mass));
    const worst = answerSteps.reduce((low, step) => step.mass < low.mass ? step : low, answerSteps[0]);
    if (worst && sparseLayers.length) {
      parts.push(`The ${sparseName} layers captured ${percent(mass)} of their attention mass on average, least ` +
          `(${percent(worst.mass)}) at `, quote(worst.read), '.');
    }
    return parts;
  }
  const step = steps[state.step];
  const parts = [`Step ${state.step + 1} of ${steps.length}: reads `, quote(step.read),
    step.answers ? ', writes ' : ' of the question.'];
  if (step.answers) parts.push(quote(step.read + 1), ` with probability ${percent(step.probability)}.`);
  parts.push(different ? ` ${who} selected ${number(different)} of ${number(step.read + 1)} positions. `
                       : ' The context fits the budget, so that every layer read all of it. ');
  if (sparseLayers.length) {
    const worst = sparseLayers.reduce((low, layer) => step.layers[layer] < step.layers[low] ? layer : low);
    parts.push(`The ${sparseName} layers captured ${percent(step.mass)} of their attention mass, least ` +
        `(${percent(step.layers[worst])}) in layer ${worst}.`);
  }
  return parts;
}

// ---- Controls ----

function update() {
  countShares();
  findPassages();
  shadeText();
  drawPassages();
  drawMap();
  drawPin();
  drawMass();
  const single = state.view === 'token';
  for (const input of document.querySelectorAll('#view input')) input.checked = input.value === state.view;
  for (const input of document.querySelectorAll('#layers input')) input.checked = +input.value === state.layer;
  $('units').lastElementChild.value = state.unit;
  $('slider').value = state.step;
  const step = steps[state.step];
  if (step) {
    $('slider').setAttribute('aria-valuetext', `step ${state.step + 1}: reads ${tokenText(step.read)}, ` +
        (step.answers ? `writes ${tokenText(step.read + 1)}` : 'of the question'));
  }
  [...$('masses').children].forEach((bar, i) => bar.classList.toggle('now', single && i === state.step));
  for (const token of $('transcript').children) {
    const now = single && token.step === state.step;
    token.classList.toggle('now', now);
    if (single ? now : token.step === state.step) {
      // Not scrollIntoView(), which would move the page as well.
      const box = $('transcript'), top = token.offsetTop - box.offsetTop;
      if (top < box.scrollTop || top + token.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - 4;
    }
  }
  $('summary').replaceChildren(...summaryParts());
  $('legend-text').textContent = single ? 'selected in few' : 'selected rarely';
  $('legend-end').textContent = single ? 'in all sets' : 'always';
  remember();
}

/** The layer whose heads are shown is one that reads what the chosen layer selected. */
function focusOnReader() {
  if (state.layer < 0 || sourceOf(state.focus) === state.layer) return;
  const select = selectLayers[state.layer];
  state.focus = roles[select] === 'Select' && roles[select + 1] === 'Sparse' ? select + 1 : select;
}

function show(change) {
  Object.assign(state, change);
  focusOnReader();
  state.step = Math.min(Math.max(state.step, 0), Math.max(steps.length - 1, 0));
  update();
}
const cycle = (value, count, by) => (value + 1 + by + count + 1) % (count + 1) - 1;  // -1 stands for all

// The state in the address, so that a page can be reopened or sent where it is.
let timer = 0;
function remember() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const parts = {view: state.view, step: state.step, layer: state.layer, unit: state.unit, pin: state.pin};
    try { history.replaceState(null, '', '#' + new URLSearchParams(parts)); } catch { /* some browsers: not for files */ }
  }, 400);
}
function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  const within = (key, low, high) => {
    const value = parseInt(given.get(key), 10);
    if (value >= low && value < high) state[key] = value;
  };
  if (['answer', 'token'].includes(given.get('view'))) state.view = given.get('view');
  within('step', 0, steps.length);
  within('layer', -1, selectLayers.length);
  within('unit', -1, data.units);
  within('pin', -1, positions);
  focusOnReader();
}

function drawControls() {
  $('model').textContent = data.model;
  for (const [label, value] of data.facts) {
    $('facts').append(element('div', {}, element('dt', {textContent: label}), element('dd', {textContent: value})));
  }
  const radio = (value, text) => $('layers').append(
      element('label', {}, element('input', {type: 'radio', name: 'layer', value}), text));
  if (selectLayers.length > 1) radio(-1, 'All');
  selectLayers.forEach((layer, i) => radio(i, layer));
  if (selectLayers.length === 1) state.layer = 0;
  $('units').hidden = data.units < 2;
  const units = $('units').lastElementChild;
  units.append(element('option', {value: -1, textContent: `all ${data.units} ${data.unit}s`}));
  for (let unit = 0; unit < data.units; ++unit) {
    units.append(element('option', {value: unit, textContent: `${data.unit} ${unit}`}));
  }
  const bars = steps.map((step) => {
    const bar = element('i', {className: step.answers ? '' : 'asked'});
    bar.style.setProperty('--h', 100 * step.mass + '%');
    return bar;
  });
  $('masses').append(...bars);
  $('masses').style.setProperty('--count', Math.max(steps.length, 2));
  $('masses').style.setProperty('--stretch', steps.length > 1 ? 1 / (1 - 1 / steps.length) : 2);
  $('slider').max = Math.max(steps.length - 1, 0);
  $('slider').disabled = steps.length < 2;
  for (let i = spanOf[data.document]; i < spans.length; ++i) {
    const {text, first} = spans[i];
    const shown = text.replace(/\n/g, first < prompt ? ' ' : '⏎ ');
    const token = element('span', {textContent: shown, className: first < prompt ? 'asked' : 'answered'});
    // A token of the answer stands for the step that wrote it, one of the question for the step that read it.
    token.step = first < prompt - 1 ? first - data.first : Math.max(first - 1, prompt - 1) - data.first;
    $('transcript').append(token);
  }
  for (let i = 1; i <= LEVELS; ++i) $('legend-scale').append(element('i', {className: 'heat' + i}));
  for (let i = 0; i < BINS; ++i) $('map').append(element('i'));
  $('map').append(element('b'));
  $('map-end').textContent = number(Math.max(positions - 1, 0));
  if (data.exact) {
    const {tried, accepted, rounds, answer, same} = data.exact;
    $('exact').hidden = false;
    $('exact-text').replaceChildren(`Of ${number(tried)} drafts by this plan, full attention accepted ` +
        `${number(accepted)} (${percent(accepted / Math.max(tried, 1))}) in ${number(rounds)} rounds. ` +
        (same ? 'Its answer is the same.' : 'Its answer is: '), ...(same ? [] : [element('q', {textContent: answer})]));
    $('exact-bar').style.width = 100 * accepted / Math.max(tried, 1) + '%';
  }
}

function listen() {
  $('view').onchange = (event) => show({view: event.target.value});
  $('layers').onchange = (event) => show({layer: +event.target.value});
  $('units').onchange = (event) => show({unit: +event.target.value});
  $('slider').oninput = () => show({view: 'token', step: +$('slider').value});
  $('masses').onclick = (event) => {
    const step = [...$('masses').children].indexOf(event.target);
    if (step >= 0) show({view: 'token', step});
  };
  $('transcript').onclick = ({target}) => {
    if (target.step >= 0 && target.step < steps.length) show({view: 'token', step: target.step});
  };
  $('map').onclick = (event) => {
    const box = $('map').getBoundingClientRect();
    jump(Math.min(Math.floor((event.clientX - box.left) / box.width * positions), positions - 1));
  };
  $('text').onmouseover = ({target}) => {
    if (target.index >= 0) $('hint').textContent = describePosition(spans[target.index].first);
  };
  $('text').onclick = ({target}) => {
    if (target.index >= 0) pin(spans[target.index].first);
  };
  let frame = 0;
  const follow = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(markView);
  };
  $('text').addEventListener('scroll', follow, {passive: true});
  addEventListener('resize', follow);
  addEventListener('hashchange', () => {
    recall();
    update();
  });
  addEventListener('keydown', onKey);
}

function onKey(event) {
  const inside = (selector) => event.target.closest && event.target.closest(selector);
  if (event.ctrlKey || event.metaKey || event.altKey || inside('select')) return;
  const by = event.shiftKey ? -1 : 1;
  const goTo = (step) => show({view: 'token', step});
  const actions = {
    ArrowLeft: () => goTo(state.view === 'token' ? state.step - 1 : state.step),
    ArrowRight: () => goTo(state.view === 'token' ? state.step + 1 : state.step),
    Home: () => goTo(0),
    End: () => goTo(steps.length - 1),
    a: () => show({view: state.view === 'answer' ? 'token' : 'answer'}),
    l: () => selectLayers.length > 1 && show({layer: cycle(state.layer, selectLayers.length, by)}),
    h: () => data.units > 1 && show({unit: cycle(state.unit, data.units, by)}),
    n: () => nextPassage(1),
    p: () => nextPassage(-1),
  };
  if (inside('#chart')) {
    actions.ArrowUp = () => focusLayer(state.focus - 1);
    actions.ArrowDown = () => focusLayer(state.focus + 1);
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!actions[key]) return;
  // Arrows keep their meaning in a group of radio buttons, Home and End in the text; the slider's are the page's.
  if (key.startsWith('Arrow') && inside('fieldset')) return;
  if ((key === 'Home' || key === 'End') && inside('#text, aside')) return;
  event.preventDefault();
  actions[key]();
}

function nextPassage(by) {
  const order = [...passages].sort((a, b) => (a.first - b.first) * by);
  const next = order.find((passage) => (passage.first - state.pin) * by > 0) || order[0];
  if (next) jump(next.first);
}

drawControls();
drawChart();
drawText();
recall();
listen();
update();
// What was read most comes into view, unless the page was asked for a position.
if (state.pin >= 0 || passages.length) scrollTo(state.pin >= 0 ? state.pin : passages[0].first);
requestAnimationFrame(markView);
document.documentElement.dataset.ready = 'true';
