// The page of `synapse serve`. What comes from jobs is hostile: it is set as text, and never becomes markup.

const MAX_JOBS = 50; // of the list
const MAX_LINES = 2000; // of a log, in the page
const MAX_LINE = 10_000;
const MAX_TEXT = 1_000_000; // of a result
const MAX_POINTS = 4000; // of a curve
const MAX_CHARTS = 60;
const POLL = 1500; // ms
const MAX_POLL = 60_000;
const FLUSH = 100;

const $ = (selector, root = document) => root.querySelector(selector);
const main = $("#main");
const notice = $("#notice");
let session = null;
let problem = ""; // what the notice says until the server answers again
let view = { close() {} };

class HttpError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// Make a request, and return its JSON. Integers that JavaScript would round are BigInts.
async function request(method, path, body) {
  const headers = { "X-Synapse-Page": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: JSON.stringify(body), cache: "no-store" });
  const text = await answer.text();
  if (!answer.ok) {
    let detail = `the server answered ${answer.status}`;
    try {
      detail = String(JSON.parse(text).detail ?? detail);
    } catch {
      // a proxy's page
    }
    throw new HttpError(answer.status, detail);
  }
  const exact = (_, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source) ? BigInt(context.source) : value;
  return text ? JSON.parse(text, exact) : null;
}

const jobPath = (id) => `runtime/jobs/${encodeURIComponent(id)}/`;

function element(tag, { text, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

// Set a text only if it changes, so that screen readers are not told again, and a selection stays.
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function show(template, title) {
  main.replaceChildren($(template).content.cloneNode(true));
  document.title = `${title} – Synapse`;
  const heading = $("h1", main);
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  return heading;
}

function setBadge(target, status) {
  const name = status.toLowerCase();
  target.classList.add("badge");
  if (target.dataset.status !== name) {
    target.classList.remove(target.dataset.status ?? "badge-of-none");
    target.classList.add(name);
    target.dataset.status = name;
    target.textContent = name;
  }
}

function when(text) {
  if (!text) return "–";
  const date = new Date(text);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = { month: "short", day: "numeric" };
  return date.toLocaleString([], { ...(isToday ? { second: "2-digit" } : day), hour: "2-digit", minute: "2-digit" });
}

function duration(job) {
  if (!job.started) return "–";
  const end = job.completed ? new Date(job.completed) : new Date();
  const seconds = Math.max(0, (end - new Date(job.started)) / 1000);
  if (seconds < 60) return `${seconds.toFixed(job.completed ? 1 : 0)} s`;
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts[0] ? `${parts[0]} h ${parts[1]} min` : `${parts[1]} min ${parts[2]} s`;
}

const hasEnded = (job) => ["SUCCEEDED", "FAILED", "STOPPED"].includes(job.status);

// Show why something failed, until the server answers again; log in anew if the session has ended.
function report(error) {
  if (error instanceof HttpError && error.status === 401) {
    session = null;
    route().then(() => setText(notice, "The session has ended."));
  } else if (error instanceof HttpError) {
    problem = error.message;
    setText(notice, problem);
  } else {
    problem = "The server does not answer. Trying again…";
    setText(notice, problem);
  }
}

function clearProblem() {
  if (notice.textContent === problem) setText(notice, "");
  problem = "";
}

// Values

const SPECIAL = { nan: "NaN", inf: "Infinity", "-inf": "-Infinity" };

// Return a number of an event; null for what is none.
function number(value) {
  if (typeof value === "bigint") return Number(value);
  if (typeof value?.$float === "string") return Number(SPECIAL[value.$float] ?? NaN);
  return typeof value === "number" ? value : null;
}

// Return a value of a run record as indented JSON, with the values that JSON lacks as Python's `json` writes them.
function pretty(value, indent = "") {
  if (typeof value === "bigint") return String(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}  `;
  if (Array.isArray(value)) {
    if (!value.length) return "[]";
    const items = value.map((item) => pretty(item, deeper));
    const line = `[${items.join(", ")}]`;
    const isShort = line.length < 72 && !line.includes("\n") && value.every((item) => typeof number(item) === "number");
    return isShort ? line : `[\n${deeper}${items.join(`,\n${deeper}`)}\n${indent}]`;
  }
  if (typeof value.$type === "string") {
    for (const key of ["fields", "value", "name", "repr"]) if (key in value) return pretty(value[key], indent);
  }
  let entries = Object.entries(value);
  if (entries.length === 1) {
    const [tag, content] = entries[0];
    if (["$tuple", "$set", "$frozenset"].includes(tag)) return pretty(content, indent);
    if (tag === "$float") return SPECIAL[content] ?? JSON.stringify(content);
    if (tag === "$int" && /^-?0x[0-9a-f]+$/.test(content)) {
      return content.startsWith("-") ? `-${BigInt(content.slice(1))}` : String(BigInt(content));
    }
    if (tag === "$bytes") return pretty(content, indent);
    if (tag === "$omitted") return `null /* left out: ${String(content).replaceAll("*/", "")} */`;
    if (tag === "$dict" && Array.isArray(content)) {
      entries = content.map(([key, item]) => [typeof key === "string" ? key : pretty(key), item]);
    }
  }
  if (!entries.length) return "{}";
  const members = entries.map(([key, item]) => `${deeper}${JSON.stringify(key)}: ${pretty(item, deeper)}`);
  return `{\n${members.join(",\n")}\n${indent}}`;
}

function limited(text) {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}\n… (${text.length} characters in all)` : text;
}

// Return an error of a run record as Python prints it, without the frames that reports leave out.
function traceback(errors, index = 0, seen = new Set()) {
  const error = errors[index];
  if (!error || seen.has(index)) return [];
  seen.add(index);
  const lines = [];
  const isWrapper = index === 0 && ["ExecutionError", "ValidationError"].includes(error.type) && error.cause !== null;
  if (isWrapper) return traceback(errors, error.cause, seen);
  if (error.cause !== null) {
    lines.push(...traceback(errors, error.cause, seen), "");
    lines.push("The above exception was the direct cause of the following exception:", "");
  } else if (error.context !== null && !error.suppress_context) {
    lines.push(...traceback(errors, error.context, seen), "");
    lines.push("During handling of the above exception, another exception occurred:", "");
  }
  const frames = error.frames.filter((frame) => !frame.hidden);
  if (frames.length) lines.push("Traceback (most recent call last):");
  for (const frame of frames) {
    lines.push(`  File "${frame.file}", line ${frame.line}, in ${frame.function}`);
    if (frame.source) lines.push(`    ${frame.source.trim()}`);
  }
  const name = ["builtins", "__main__"].includes(error.module) ? error.type : `${error.module}.${error.type}`;
  lines.push(error.text ? `${name}: ${error.text}` : name, ...error.notes);
  for (const member of error.exceptions ?? []) {
    lines.push(...traceback(errors, member, seen).map((line) => `  | ${line}`));
  }
  return lines;
}

// Views

function logInView(message = "") {
  show("#login-view", "Log in");
  const form = $("form", main);
  const fail = (text) => setText($(".error", form), text);
  fail(message);
  const field = $("input", form);
  field.focus();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await logIn({ token: field.value });
    } catch (error) {
      fail(error instanceof HttpError ? error.message : "The server does not answer.");
      field.select();
    }
  });
  return { close() {} };
}

// Call a function now and then: often while the page is visible, rarely while it is not or the server does not answer.
function poll(task) {
  let timer = 0;
  let delay = POLL;
  let isClosed = false;
  let isRunning = false;
  let isDue = false; // again, once it has ended
  const run = async () => {
    clearTimeout(timer);
    isDue = isRunning;
    if (isRunning) return;
    isRunning = true;
    try {
      await task();
      delay = document.hidden ? delay * 2 : POLL;
    } catch (error) {
      delay *= 2;
      if (!isClosed) report(error);
    }
    isRunning = false;
    delay = Math.min(delay, MAX_POLL);
    if (!isClosed) timer = setTimeout(run, isDue ? 0 : delay);
  };
  const onVisible = () => {
    if (!document.hidden) run();
  };
  document.addEventListener("visibilitychange", onVisible);
  run();
  return {
    run,
    close() {
      isClosed = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisible);
    },
  };
}

function jobsView() {
  show("#jobs-view", "Jobs");
  const [filter, body] = [$("select", main), $("tbody", main)];
  const [empty, count] = [$(".empty", main), $(".count", main)];
  const [newest, older] = [$(".newest", main), $(".older", main)];
  const rows = new Map();
  let before = null;
  let last = null;
  let isClosed = false;

  const createRow = (job) => {
    const badge = element("span");
    const link = element("a", { text: job.action, href: `#/jobs/${encodeURIComponent(job.id)}` });
    const plugin = element("small", { text: `${job.plugin}@${job.version}` });
    const cells = [element("td", {}, badge), element("td", {}, link, plugin), element("td"), element("td", { className: "number" })];
    return { element: element("tr", {}, ...cells), badge, started: cells[2], duration: cells[3] };
  };

  const query = () => {
    const wanted = new URLSearchParams({ limit: MAX_JOBS });
    if (filter.value) wanted.set("status", filter.value);
    if (before !== null) wanted.set("before", before);
    return String(wanted);
  };

  const refresh = async () => {
    const asked = query();
    const answer = await request("GET", `runtime/jobs/?${asked}`);
    if (isClosed || asked !== query()) return;
    clearProblem();
    const jobs = answer.results;
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) {
      if (!ids.has(id)) {
        row.element.remove();
        rows.delete(id);
      }
    }
    let next = body.firstElementChild;
    for (const job of jobs) {
      let row = rows.get(job.id);
      if (!row) rows.set(job.id, (row = createRow(job)));
      setBadge(row.badge, job.status);
      setText(row.started, when(job.started));
      setText(row.duration, duration(job));
      if (row.element === next) next = next.nextElementSibling;
      else body.insertBefore(row.element, next);
    }
    last = jobs.length ? jobs.at(-1).number : null;
    empty.hidden = jobs.length > 0;
    setText(empty, filter.value ? "No job has this status." : "There are no jobs yet. Run one: synapse plugin run ACTION --mode remote");
    setText(count, answer.count === 1 ? "1 job" : `${answer.count} jobs`);
    older.hidden = jobs.length < MAX_JOBS;
    newest.hidden = before === null;
  };

  const poller = poll(refresh);
  const turn = (to) => {
    before = to;
    poller.run();
  };
  filter.addEventListener("change", () => turn(null));
  newest.addEventListener("click", () => turn(null));
  older.addEventListener("click", () => turn(last));
  return {
    close() {
      isClosed = true;
      poller.close();
    },
  };
}

const COLORS = /\x1b\[[0-9;?]*[A-Za-z]/g;

// The last lines of a log.
class Log {
  constructor(root) {
    this.pre = $("pre", root);
    this.omitted = $(".omitted", root);
    this.count = 0;
    this.open = {}; // the line of each stream that has no end yet
    this.waiting = [];
  }

  add(kind, text) {
    const parts = text.split("\n");
    const rest = parts.pop();
    for (const part of parts) {
      this.append(kind, part);
      delete this.open[kind];
    }
    if (rest) this.append(kind, rest);
  }

  append(kind, text) {
    let line = this.open[kind];
    if (!line) {
      line = { kind, text: "", element: null };
      this.open[kind] = line;
      this.count += 1;
    }
    if (!line.isWaiting) {
      line.isWaiting = true;
      this.waiting.push(line);
    }
    // As on a terminal, a carriage return starts the line anew: progress bars are printed so.
    const whole = line.text + text;
    line.text = whole.slice(whole.lastIndexOf("\r", whole.length - 2) + 1).slice(0, MAX_LINE + 1);
  }

  draw() {
    const isAtEnd = this.pre.scrollHeight - this.pre.scrollTop - this.pre.clientHeight < 24;
    const added = document.createDocumentFragment();
    const isNew = this.waiting.filter((line) => !line.element).length;
    let skipped = Math.max(0, isNew - MAX_LINES);
    for (const line of this.waiting) {
      line.isWaiting = false;
      if (!line.element && skipped > 0) {
        skipped -= 1;
        continue;
      }
      if (!line.element) added.append((line.element = element("div", { className: line.kind })));
      const isCut = line.text.length > MAX_LINE;
      line.element.textContent = line.text.slice(0, MAX_LINE).replace(COLORS, "") + (isCut ? "…" : "");
    }
    this.waiting = [];
    this.pre.append(added);
    while (this.pre.childElementCount > MAX_LINES) this.pre.firstElementChild.remove();
    const missing = this.count - this.pre.childElementCount;
    this.omitted.hidden = missing <= 0;
    setText(this.omitted, `${missing} earlier lines are not shown.`);
    if (isAtEnd) this.pre.scrollTop = this.pre.scrollHeight;
  }
}

class ProgressBars {
  constructor(root) {
    this.root = root;
    this.bars = new Map();
  }

  set(step, data) {
    const [current, total] = [number(data?.current), number(data?.total)];
    if (current === null || total === null) return;
    let bar = this.bars.get(step);
    if (!bar) {
      if (this.bars.size >= MAX_CHARTS) return;
      const id = `progress-${this.bars.size}`;
      bar = { meter: element("progress", { id, max: 100 }), text: element("span"), value: "" };
      this.bars.set(step, bar);
      this.root.append(element("div", { className: "step" }, element("label", { text: step, htmlFor: id }), bar.meter, bar.text));
      this.root.hidden = false;
    }
    const percent = total > 0 ? Math.min(100, Math.max(0, (100 * current) / total)) : 0;
    bar.meter.value = Number.isFinite(percent) ? percent : 0;
    setText(bar.text, `${short(current)} of ${short(total)}`);
  }
}

const short = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));

// A metric's curve. Beyond MAX_POINTS, every other point is dropped.
class Curve {
  constructor(step, name) {
    this.values = [];
    this.stride = 1;
    this.count = 0;
    this.name = step ? `${step}: ${name}` : name;
    this.path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("viewBox", "0 0 300 100");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.append(this.path);
    [this.top, this.bottom, this.last] = [element("span"), element("span"), element("span")];
    const caption = element("figcaption", {}, element("span", { text: this.name }), this.last);
    const axis = element("div", { className: "axis", ariaHidden: "true" }, this.top, this.bottom);
    this.element = element("figure", {}, caption, element("div", { className: "plot" }, axis, this.svg));
  }

  add(value) {
    if (this.count % this.stride === 0) this.values.push(value);
    this.count += 1;
    this.current = value;
    if (this.values.length > MAX_POINTS) {
      this.values = this.values.filter((_, index) => index % 2 === 0);
      this.stride *= 2;
    }
  }

  draw() {
    const finite = this.values.filter(Number.isFinite);
    const low = finite.reduce((least, value) => Math.min(least, value), Infinity);
    const high = finite.reduce((most, value) => Math.max(most, value), -Infinity);
    const x = (index) => (this.values.length > 1 ? (300 * index) / (this.values.length - 1) : 150);
    const y = (value) => (high > low ? 96 - 92 * ((value - low) / (high - low)) : 50);
    let isDrawing = false;
    const steps = [];
    this.values.forEach((value, index) => {
      const isPoint = Number.isFinite(value);
      if (isPoint) {
        const place = `${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
        // A line of no length is a dot: for a point without neighbours.
        steps.push(isDrawing ? `L${place}` : `M${place}h0`);
      }
      isDrawing = isPoint;
    });
    this.path.setAttribute("d", steps.join(""));
    setText(this.last, short(this.current));
    setText(this.top, finite.length ? short(high) : "");
    setText(this.bottom, high > low ? short(low) : "");
    const range = finite.length ? `between ${short(low)} and ${short(high)}` : "none of them finite";
    this.svg.setAttribute("aria-label", `${this.name}: ${this.count} values ${range}, the last ${short(this.current)}`);
  }
}

class Curves {
  constructor(root) {
    this.root = root;
    this.curves = new Map();
    this.changed = new Set();
    this.grid = element("div", { className: "charts" });
    root.append(this.grid);
  }

  add(step, data) {
    for (const [name, item] of Object.entries(data ?? {})) {
      const value = number(item);
      if (value === null) continue;
      const key = JSON.stringify([step, name]);
      let curve = this.curves.get(key);
      if (!curve) {
        if (this.curves.size >= MAX_CHARTS) continue;
        this.curves.set(key, (curve = new Curve(step, name)));
        this.grid.append(curve.element);
        this.root.hidden = false;
      }
      curve.add(value);
      this.changed.add(curve);
    }
  }

  draw() {
    for (const curve of this.changed) curve.draw();
    this.changed.clear();
  }
}

function jobView(id) {
  const heading = show("#job-view", "Job");
  const part = (name) => $(name, main);
  const log = new Log(part(".log"));
  const bars = new ProgressBars(part(".progress"));
  const curves = new Curves(part(".metrics"));
  const [stop, status] = [part(".stop"), part(".facts .status")];
  let job = null;
  let last = 0; // number of the last event
  let source = null;
  let flush = 0;
  let retry = 0;
  let isClosed = false;

  const refresh = async () => {
    const answer = await request("GET", jobPath(id));
    if (isClosed) return;
    const isFirst = job === null;
    job = answer;
    clearProblem();
    setBadge(status, job.status);
    setText(part(".started"), when(job.started));
    setText(part(".duration"), duration(job));
    stop.hidden = hasEnded(job) || !session.scopes.some((scope) => ["run", "admin"].includes(scope));
    document.title = `${job.action} ${job.status.toLowerCase()} – Synapse`;
    if (isFirst) {
      heading.textContent = job.action;
      part(".plugin").textContent = `${job.plugin}@${job.version}`;
      part(".id").textContent = job.id;
      part(".params pre").textContent = limited(pretty(job.params));
      part(".command").hidden = job.command === null;
      part(".command pre").textContent = job.command ?? "";
    }
    if (hasEnded(job)) await showOutcome();
  };

  const showOutcome = async () => {
    const run = await request("GET", `${jobPath(id)}run/?events=false`);
    if (isClosed) return;
    const hasFailed = run.status !== "succeeded";
    part("section.error").hidden = !hasFailed;
    part("section.result").hidden = hasFailed;
    if (hasFailed) setText(part("section.error pre"), limited(traceback(run.error ?? []).join("\n") || "The run failed."));
    else setText(part("section.result pre"), limited(pretty(run.result)));
  };

  const draw = () => {
    flush = 0;
    log.draw();
    curves.draw();
  };

  const handlers = {
    log: (data) => log.add(data.stream === "stderr" ? "stderr" : "stdout", String(data.text)),
    progress: (data) => bars.set(data.step ?? job?.action ?? "run", data.data),
    metric: (data) => curves.add(data.step ?? "", data.data),
    event: (data) => {
      const isEmpty = !Object.keys(data.data ?? {}).length;
      log.add("message", `${data.level}: ${data.name}${isEmpty ? "" : ` ${pretty(data.data).replace(/\s*\n\s*/g, " ")}`}\n`);
    },
    status: () => refresh().catch(report),
    end: () => {
      disconnect();
      refresh().catch(report);
    },
  };

  const connect = () => {
    clearTimeout(retry);
    if (isClosed || source !== null || document.hidden) return;
    source = new EventSource(`${jobPath(id)}events/?after=${last}`);
    for (const [kind, handle] of Object.entries(handlers)) {
      source.addEventListener(kind, (event) => {
        last = Number(event.lastEventId);
        handle(JSON.parse(event.data));
        flush ||= setTimeout(draw, FLUSH);
      });
    }
    source.addEventListener("error", () => {
      disconnect();
      if (job !== null && hasEnded(job)) return;
      retry = setTimeout(async () => {
        try {
          await refresh();
          if (!hasEnded(job)) connect();
        } catch (error) {
          if (isClosed) return;
          report(error);
          if (error.status !== 404) retry = setTimeout(connect, 2 * POLL);
        }
      }, POLL);
    });
  };

  const disconnect = () => {
    source?.close();
    source = null;
  };

  const onVisibility = () => (document.hidden ? disconnect() : !(job && hasEnded(job)) && connect());
  document.addEventListener("visibilitychange", onVisibility);
  const clock = setInterval(() => job && !job.completed && setText(part(".duration"), duration(job)), 1000);

  stop.addEventListener("click", async () => {
    if (!(await confirmed(`Stop ${job.action} (${job.plugin}@${job.version})?`))) return;
    stop.disabled = true;
    setText(stop, "Stopping…");
    try {
      await request("POST", `${jobPath(id)}stop/`);
    } catch (error) {
      report(error);
      problem = ""; // it stays
    }
    if (isClosed) return;
    stop.disabled = false;
    setText(stop, "Stop");
    refresh().catch(report);
  });

  part(".copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(job.command);
      setText(notice, "Copied.");
    } catch {
      // Without TLS, browsers offer the clipboard on this machine only.
      getSelection().selectAllChildren(part(".command pre"));
      setText(notice, "The command is selected: copy it with your keyboard.");
    }
  });

  refresh().then(connect, (error) => {
    if (isClosed) return;
    report(error);
    if (error.status === 404) {
      heading.textContent = "No such job";
      for (const unused of main.querySelectorAll("section, dl")) unused.remove();
    } else {
      retry = setTimeout(() => !isClosed && route(), 2 * POLL);
    }
  });
  return {
    close() {
      isClosed = true;
      disconnect();
      clearTimeout(flush);
      clearTimeout(retry);
      clearInterval(clock);
      document.removeEventListener("visibilitychange", onVisibility);
    },
  };
}

function confirmed(question) {
  const dialog = $("#confirm");
  $("p", dialog).textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// Sessions and routes

async function logIn(body) {
  session = await request("POST", "runtime/session/", body);
  route();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Show the view of the address. A code in it is removed at once, so that it is not in the history.
async function route() {
  view.close();
  view = { close() {} };
  setText(notice, "");
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
  if (code) {
    history.replaceState(null, "", `${location.pathname}#/`);
    try {
      await logIn({ code });
      return;
    } catch (error) {
      view = logInView(error.message);
      return;
    }
  }
  const job = /^#\/jobs\/([^/]+)$/.exec(location.hash)?.[1];
  $("#log-out").hidden = session === null;
  setText($("#who"), session === null ? "" : session.owner);
  if (session === null) view = logInView();
  else if (job) view = jobView(decoded(job));
  else view = jobsView();
}

$("#log-out").addEventListener("click", async () => {
  try {
    await request("DELETE", "runtime/session/");
  } catch (error) {
    if (error.status !== 401) {
      report(error);
      return;
    }
  }
  session = null;
  route();
});

window.addEventListener("hashchange", route);
try {
  const known = await request("GET", "runtime/session/");
  session = known.owner === null ? null : known;
  await route();
} catch (error) {
  await route();
  report(error);
}
