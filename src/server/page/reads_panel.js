// The panel that shows an answer's Reads: two maps, the most read passages, the shaded text.

// Texts of a part, which has spans only while it is in sight. It ends with a line, or where there is none for long.
const kPart = 128, kLongPart = 384;
const kRows = 64;       // steps of the lower map
const kPassages = 3;
const kDrawEvery = 200; // ms

function percent(share) {
  return (share >= .1 || share === 0 ? Math.round(100 * share) : Number((100 * share).toPrecision(2))) + ' %';
}

const panel = {
  reads: null,
  parts: [],       // {node, first, end, spans, closed}: spans is null while out of sight
  timer: 0,
  pinned: -1,      // a text

  /** Shows another answer's reads, or null. */
  show(reads) {
    if (reads === this.reads) return this.draw();
    this.reads = reads;
    for (const part of this.parts) this.sight.unobserve(part.node);
    this.parts = [];
    this.pinned = -1;
    $('text').replaceChildren();
    if (reads) reads.look(Number($('window').value));
    this.draw();
  },

  /** Soon: something has changed. */
  touch() {
    if ($('reads').hidden || this.timer) return;
    this.timer = setTimeout(() => this.draw(), kDrawEvery);
  },

  draw() {
    clearTimeout(this.timer);
    this.timer = 0;
    if ($('reads').hidden) return;
    const reads = this.reads, sparse = reads && reads.last && !reads.last.all;
    $('drawn').hidden = !(reads && reads.length && (sparse || !reads.last));
    $('reads-note').textContent = this.note();
    if ($('drawn').hidden) return;
    this.drawMaps();
    this.drawPassages();
    this.drawText();
    $('answer-at').textContent = 'answer from ' + reads.prompt;
    $('last').textContent = reads.length - 1;
  },

  note() {
    const reads = this.reads;
    if (!reads) return 'Counted while an answer comes: send a message, or regenerate the last answer.';
    if (!reads.length) return 'The prompt is waiting, or its first chunk is being read.';
    if (!reads.last) return `The prompt is being read: ${reads.length} of ${reads.prompt} tokens.`;
    const step = reads.last;
    if (step.all) {
      return `Every layer reads everything, all ${step.position + 1} positions: full attention, exact mode, or a context ` +
             'that fits in the budget. There is nothing to shade.';
    }
    const told = step.positions.length, left = step.left_out ? `; the ${told} most read are shown` : '';
    return `The last token read ${told + step.left_out} of ${step.position + 1} positions, in ${step.sets} sets, one for ` +
           `every layer and group of heads that reads a selection${left}.`;
  },

  colours() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim().slice(1);
      const wide = hex.length === 3 ? [...hex].map((digit) => digit + digit).join('') : hex;
      return [0, 2, 4].map((at) => parseInt(wide.slice(at, at + 2), 16));
    };
    const heat = [rgb('--panel')];
    for (let level = 1; level <= kLevels; ++level) heat.push(rgb('--heat' + level));
    return { heat, always: rgb('--always'), accent: rgb('--accent') };
  },

  /** Draws by `pixel(x, y)` -> a colour, one value a device pixel across. */
  paint(canvas, rows, pixel) {
    const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    if (canvas.width !== width || canvas.height !== rows) Object.assign(canvas, { width, height: rows });
    const context = canvas.getContext('2d'), image = context.createImageData(width, rows);
    for (let y = 0, at = 0; y < rows; ++y) {
      for (let x = 0; x < width; ++x, at += 4) {
        const colour = pixel(x, y, width);
        image.data.set(colour, at);
        image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  },

  drawMaps() {
    const reads = this.reads, colours = this.colours(), length = Math.max(reads.length, 1);
    const width = Math.max(1, Math.round($('strip').clientWidth * devicePixelRatio));
    // A column is many positions, or a position many columns: each shows the most read of its own.
    const column = new Array(width).fill(null);
    const span = (position) => {
      const from = Math.floor(position * width / length);
      return [from, Math.max(Math.floor((position + 1) * width / length), from + 1)];
    };
    const put = (line, position, value) => {
      const [from, to] = span(position);
      for (let x = from; x < to && x < width; ++x) line[x] = line[x] === null || value > line[x] ? value : line[x];
    };
    for (const key of Object.keys(reads.sums)) {
      const position = Number(key);
      if (position < reads.length) put(column, position, reads.always(position) ? -1 : reads.level(position));
    }
    const answer = span(reads.prompt)[0];
    this.paint($('strip'), 1, (x) => x === answer ? colours.accent : column[x] === null ? colours.heat[0]
      : column[x] < 0 ? colours.always : colours.heat[column[x]]);
    const rows = reads.steps.slice(-kRows).map((step) => {
      const line = new Array(width).fill(null);
      if (!step.all) {
        for (const [position, sets] of step.positions) {
          const always = position < step.sinks || position > step.position - step.recent;
          put(line, position, always ? -1 : Math.max(1, Math.ceil(kLevels + Math.log2(sets / step.sets))));
        }
      }
      return line;
    });
    this.paint($('steps'), kRows, (x, y) => {
      const line = rows[y - (kRows - rows.length)];
      const value = line ? line[x] : null;
      return value === null || value === undefined ? colours.heat[0] : value < 0 ? colours.always : colours.heat[value];
    });
    const held = reads.last && !reads.last.all ? reads.last.positions.length + reads.last.left_out : 0;
    $('strip').setAttribute('aria-label', `Positions 0 to ${reads.length - 1}, shaded by what the last ${reads.looked} ` +
      `tokens read; the last one read ${held}`);
  },

  /** Spans of texts [first, end), shaded. */
  spans(first, end) {
    const made = [];
    for (let text = first; text < end; ++text) {
      const span = element('span', { className: this.reads.shade(text), textContent: this.reads.texts[text] });
      span.dataset.position = this.reads.starts[text];
      made.push(span);
    }
    return made;
  },

  drawPassages() {
    const found = this.reads.passages(kPassages), list = $('passages');
    // In place: who stands on one with the keyboard stays there.
    while (list.children.length > found.length) list.lastChild.remove();
    while (list.children.length < found.length) {
      const button = element('button', { type: 'button' });
      button.addEventListener('click', () => this.scrollTo(Number(button.dataset.position)));
      list.append(element('li', {}, button));
    }
    found.forEach((passage, index) => {
      const button = list.children[index].firstChild;
      button.dataset.position = passage.peak;
      const share = percent(this.reads.share(passage.peak));
      button.replaceChildren(element('small', { textContent: `position ${passage.peak}: in ${share} of the sets` }),
                             ...this.spans(passage.first, passage.end));
    });
    if (!found.length) list.replaceChildren();
  },

  drawText() {
    const reads = this.reads;
    const last = this.parts[this.parts.length - 1];
    let next = last ? last.end : 0;
    if (last && !last.closed && next < reads.texts.length) {
      // It grows.
      this.parts.pop();
      next = this.addPart(last.first, last);
    }
    while (next < reads.texts.length) next = this.addPart(next);
    for (const part of this.parts) if (part.spans) this.shade(part);
  },

  /** A part of the texts from `first` on, in the place of `old`, if there is one; where it ends. */
  addPart(first, old) {
    const texts = this.reads.texts;
    let end = Math.min(first + kPart, texts.length);
    while (end < texts.length && end < first + kLongPart && !texts[end - 1].endsWith('\n')) ++end;
    const closed = end - first >= kPart && (end < texts.length || end - first >= kLongPart);
    const part = { node: old ? old.node : element('div', { className: 'part' }), first, end, spans: null, closed };
    this.parts.push(part);
    part.node.textContent = texts.slice(first, end).join('');
    if (old && old.spans) this.seen(part, true);
    if (!old) {
      $('text').append(part.node);
      this.sight.observe(part.node);
    }
    return end;
  },

  shade(part) {
    part.spans.forEach((span, index) => {
      const shade = (this.reads.shade(part.first + index) + (part.first + index === this.pinned ? ' pin' : '')).trim();
      if (span.className !== shade) span.className = shade;
    });
  },

  /** A part comes into sight or goes out of it. */
  seen(part, visible) {
    if (visible === (part.spans !== null)) return;
    part.spans = visible ? this.spans(part.first, part.end) : null;
    if (visible) part.node.replaceChildren(...part.spans);
    else part.node.textContent = this.reads.texts.slice(part.first, part.end).join('');
  },

  scrollTo(position) {
    const text = this.reads.textAt(position);
    const part = this.parts.find((one) => text < one.end);
    if (!part) return;
    this.seen(part, true);
    const span = part.spans[text - part.first];
    this.pinned = text;
    for (const one of this.parts) if (one.spans) this.shade(one);
    const box = $('text');
    const place = () => {
      box.scrollTop += span.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 3;
    };
    place();
    // Parts on the way have their heights only once they have been in sight.
    for (const wait of [30, 120]) setTimeout(() => span.isConnected && place(), wait);
    this.tell(position);
  },

  tell(position) {
    const reads = this.reads, share = percent(reads.share(position));
    $('hint').textContent = `Position ${position}: in ${share} of the sets of the last ${reads.looked} tokens` +
      (reads.always(position) ? ', which always hold it' : '');
  },

  start() {
    this.sight = new IntersectionObserver((changes) => {
      for (const change of changes) {
        const part = this.parts.find((one) => one.node === change.target);
        if (part) this.seen(part, change.isIntersecting);
      }
    }, { root: $('text'), rootMargin: '300px' });
    const scale = [element('b', { textContent: '1/128' })];
    for (let level = 1; level <= kLevels; ++level) scale.push(element('i', { className: 'heat' + level }));
    $('scale').append(...scale, element('b', { textContent: '1' }));
    $('window').addEventListener('change', () => {
      if (this.reads) this.reads.look(Number($('window').value));
      this.draw();
    });
    $('text').addEventListener('mouseover', (event) => {
      if (event.target.dataset.position) this.tell(Number(event.target.dataset.position));
    });
    for (const id of ['strip', 'steps']) {
      $(id).addEventListener('click', (event) => {
        if (this.reads) this.scrollTo(Math.floor(event.offsetX / $(id).clientWidth * this.reads.length));
      });
    }
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
    addEventListener('resize', () => this.touch());
  },
};
