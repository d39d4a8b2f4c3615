// What a person does: sends, stops, regenerates, attaches, chooses, by mouse or keys.

const page = { turns: [], files: [], ready: false, readsOf: null };

function tell(text, wrong = false) {
  $('state').textContent = text;
  $('state').classList.toggle('wrong', wrong);
}

function complain(text) {
  $('trouble').textContent = text;
  $('trouble').hidden = !text;
}

function settings() {
  const number = (id) => $(id).value.trim() === '' ? null : Number($(id).value);
  return { temperature: number('temperature'), most: number('most'), budget: $('budget').value.trim(),
           system: $('system').value.trim(), reads: !$('reads').hidden };
}

function chosenPlans() {
  return [...$('plans').querySelectorAll('input')].filter((one) => one.checked).map((one) => one.value);
}

const comparing = () => $('compare').getAttribute('aria-pressed') === 'true';

/** One kind of attention, or several while comparing; one at least. */
function choosePlan(changed) {
  if (!comparing()) for (const one of $('plans').querySelectorAll('input')) one.checked = one === changed;
  else if (!chosenPlans().length) changed.checked = true;
}

const lastTurn = () => page.turns[page.turns.length - 1];
const running = () => page.turns.some((turn) => turn.running);

function draw() {
  const busy = running();
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('send').disabled = !page.ready;
  page.turns.forEach((turn) => turn.drawActions(turn === lastTurn(), regenerate));
}

/** The log stays at its end where it was there. */
function follow(change) {
  const log = $('log'), scrolls = log.scrollHeight > log.clientHeight;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd || !scrolls) log.scrollTop = log.scrollHeight;
}

/** Called by an answer when something of it has changed. */
function panelOf(answer) {
  if (page.readsOf === answer) panel.touch();
}

function chooseReads(answer) {
  page.readsOf = answer;
  panel.show(answer ? answer.reads : null);
}

/** The answers of the last turn whose reads can be looked at, as radio buttons where there are several. */
function drawReadsChoice() {
  const answers = lastTurn() ? lastTurn().answers : [];
  const box = $('reads-of');
  box.hidden = answers.length < 2;
  for (const old of box.querySelectorAll('label')) old.remove();
  // The first that leaves something out.
  const sparse = answers.find((answer) => !['full', 'exact'].includes(answer.plan));
  const shown = sparse || answers[0] || null;
  for (const answer of answers) {
    const input = element('input', { type: 'radio', name: 'reads-of', value: answer.plan, checked: answer === shown });
    input.addEventListener('change', () => chooseReads(answer));
    box.append(element('label', {}, input, answer.plan));
  }
  chooseReads(shown);
}

async function answer(turn) {
  complain('');
  const now = settings(), messages = messagesOf(now.system, page.turns);
  const answers = chosenPlans().map((plan) => new Answer(plan, () => follow(() => {})));
  follow(() => turn.replace(answers));
  $('log').setAttribute('aria-busy', 'true');
  tell('Answering');
  const ready = answers.length > 1 ? readPrompt(messages, turn.reading.signal) : Promise.resolve();
  const all = answers.map((one) => one.run(messages, now, ready).then(() => turn.answers.includes(one) && draw()));
  drawReadsChoice();
  draw();
  await Promise.all(all);
  if (turn.answers !== answers) return;  // answered anew in the meantime
  $('log').removeAttribute('aria-busy');
  const failed = answers.find((one) => one.failure);
  tell(failed ? '' : 'Done');
  if (failed) {
    complain(failed.failure.message);
    if (failed.failure.status === 401) showSettings(true, 'key');
  }
  panel.touch();
  draw();
}

function send() {
  const text = $('prompt').value.trim();
  if (!page.ready || running() || (!text && !page.files.length)) return;
  const turn = new Turn(text, page.files);
  page.turns.push(turn);
  page.files = [];
  drawFiles();
  $('prompt').value = '';
  fit();
  $('welcome').hidden = true;
  follow(() => $('log').append(turn.node));
  $('log').scrollTop = $('log').scrollHeight;
  answer(turn);
}

function regenerate() {
  if (!lastTurn() || running()) return;
  answer(lastTurn());
  $('prompt').focus();
}

function stop() {
  for (const turn of page.turns) turn.stop();
  $('prompt').focus();
}

function newChat() {
  stop();
  for (const turn of page.turns) turn.node.remove();
  page.turns = [];
  $('welcome').hidden = false;
  complain('');
  tell('');
  drawReadsChoice();
  draw();
  $('prompt').focus();
}

function drawFiles() {
  $('files').replaceChildren(...page.files.map((file, index) => {
    const remove = element('button', { type: 'button', textContent: 'Remove', 'aria-label': 'Remove ' + file.name });
    remove.addEventListener('click', () => {
      page.files.splice(index, 1);
      drawFiles();
      $('prompt').focus();
    });
    return element('li', {}, `${file.name}, ${file.text.length} characters`, remove);
  }));
}

async function attach(files) {
  complain('');
  for (const file of files) {
    try {
      page.files.push(await readFile(file));
    } catch (error) {
      complain(error.message);
    }
  }
  drawFiles();
  $('prompt').focus();
}

function showSettings(shown, focus = 'system') {
  $('settings').hidden = !shown;
  $('show-settings').setAttribute('aria-expanded', String(shown));
  if (shown) $(focus).focus();
}

/** The message's field is as high as its text. */
function fit() {
  $('prompt').style.height = 'auto';
  $('prompt').style.height = $('prompt').scrollHeight + 2 + 'px';
}

async function connect() {
  page.ready = false;
  draw();
  try {
    const about = await waitForModel((text) => tell(text[0].toUpperCase() + text.slice(1)));
    $('model').textContent = `${about.model}, context ${about.context}`;
    $('temperature').placeholder = `the server's, ${Number(about.settings.temperature.toFixed(3))}`;
    page.ready = true;
    tell('');
    complain(about.chat ? '' : 'This model has no chat template: start the server with --chat-template.');
  } catch (error) {
    tell('');
    complain(error.message);
    if (error.status === 401) showSettings(true, 'key');
  }
  draw();
}

function start() {
  panel.start();
  $('key').value = api.key;
  $('key').addEventListener('change', () => {
    api.key = $('key').value.trim();
    complain('');
    connect();
  });
  $('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    send();
  });
  $('prompt').addEventListener('keydown', (event) => {
    // While characters are put together, Enter ends that.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $('prompt').addEventListener('input', fit);
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && running()) stop();
  });
  $('stop').addEventListener('click', stop);
  $('new').addEventListener('click', newChat);
  $('attach').addEventListener('click', () => $('file').click());
  $('file').addEventListener('change', () => {
    attach([...$('file').files]);
    $('file').value = '';
  });
  $('show-settings').addEventListener('click', () => showSettings($('settings').hidden));
  $('show-reads').addEventListener('click', () => {
    const shown = $('reads').hidden;
    $('reads').hidden = !shown;
    $('show-reads').setAttribute('aria-pressed', String(shown));
    panel.draw();
  });
  $('plans').addEventListener('change', (event) => choosePlan(event.target));
  $('compare').addEventListener('click', () => {
    const several = !comparing();
    $('compare').setAttribute('aria-pressed', String(several));
    if (!several) choosePlan($('plans').querySelector('input:checked'));
  });
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    $('chat').addEventListener(kind, (event) => {
      event.preventDefault();
      $('chat').classList.toggle('over', kind === 'dragover');
      if (kind === 'drop') attach([...event.dataTransfer.files]);
    });
  }
  drawReadsChoice();
  connect();
  $('prompt').focus();
}

start();
