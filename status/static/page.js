// The page works without this script. With it, the page keeps itself up to
// date: the server sends the parts that changed, already rendered, and this
// puts them in place without disturbing what a reader has opened, focused,
// selected or scrolled to.
"use strict";
(() => {
  // Ages, in the same words as the server's.
  function age(seconds) {
    if (seconds < 120) return Math.max(0, Math.floor(seconds)) + " s";
    if (seconds < 7200) return Math.floor(seconds / 60) + " min";
    if (seconds < 172800) return Math.floor(seconds / 3600) + " h";
    return Math.floor(seconds / 86400) + " d";
  }

  function tell(root) {
    const now = Date.now();
    for (const t of root.querySelectorAll("time[datetime]")) {
      const text = age(Math.abs(now - Date.parse(t.dateTime)) / 1000);
      if (t.firstChild && t.firstChild.data !== text) t.firstChild.data = text;
    }
  }

  // morph makes node like wanted, keeping the nodes that can stay.
  function morph(node, wanted, keyed) {
    if (node.nodeType !== wanted.nodeType || node.nodeName !== wanted.nodeName) {
      node.replaceWith(wanted);
      return;
    }
    if (node.nodeType !== Node.ELEMENT_NODE) {
      if (node.data !== wanted.data && node.parentNode.nodeName !== "TIME") node.data = wanted.data;
      return;
    }
    for (const a of [...node.attributes]) {
      const mine = a.name === "data-touched" || a.name === "open" && node.dataset.touched;
      if (!mine && !wanted.hasAttribute(a.name)) node.removeAttribute(a.name);
    }
    for (const a of wanted.attributes) {
      if (node.getAttribute(a.name) !== a.value && !(a.name === "open" && node.dataset.touched)) node.setAttribute(a.name, a.value);
    }
    children(node, wanted, keyed);
  }

  // children makes the content of node like that of wanted. Nodes with a key
  // are looked for in all of the fragment, since what gets ill changes places.
  function children(node, wanted, keyed) {
    let at = node.firstChild;
    for (const w of [...wanted.childNodes]) {
      const key = name(w);
      const known = key && keyed.get(key);
      if (known && !known.contains(node)) {
        keyed.delete(key);
        keyed.used.add(known);
        if (known === at) at = at.nextSibling; else node.insertBefore(known, at);
        morph(known, w, keyed);
      } else if (!key && at && !name(at)) {
        const next = at.nextSibling;
        morph(at, w, keyed);
        at = next;
      } else {
        node.insertBefore(w, at);
        if (key) w.classList.add("changed");
      }
    }
    while (at) {
      const next = at.nextSibling;
      // A node whose new place comes later stays until then.
      if (keep(at, keyed)) keyed.kept.push(at); else at.remove();
      at = next;
    }
  }

  const name = (n) => n.nodeType === Node.ELEMENT_NODE && n.dataset.key ? n.nodeName + n.dataset.key : "";

  function keep(node, keyed) {
    if (node.nodeType !== Node.ELEMENT_NODE) return false;
    const still = (n) => name(n) && keyed.get(name(n)) === n && keyed.wanted.has(name(n));
    return still(node) || [...node.querySelectorAll("[data-key]")].some(still);
  }

  // put makes the content of element like the HTML that the server sent.
  function put(element, html) {
    const wanted = document.createElement("template");
    wanted.innerHTML = html;
    const keyed = new Map();
    keyed.wanted = new Set([...wanted.content.querySelectorAll("[data-key]")].map(name));
    for (const n of element.querySelectorAll("[data-key]")) keyed.set(name(n), n);
    keyed.used = new Set();
    keyed.kept = [];
    const focused = document.activeElement;
    children(element, wanted.content, keyed);
    for (const n of keyed.kept) if (!keyed.used.has(n)) n.remove();
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    tell(element);
  }

  function apply(update) {
    document.title = update.title;
    document.documentElement.className = "level-" + update.level;
    const icon = document.getElementById("icon");
    icon.href = icon.getAttribute("href").replace(/\/static\/[a-z]+\.svg/, "/static/" + update.level + ".svg");
    for (const id of update.order) {
      if (!(id in update.fragments)) continue;
      const element = document.getElementById(id);
      if (!element) { location.reload(); return; }
      put(element, update.fragments[id]);
    }
    const say = document.getElementById("announce");
    if (say.textContent !== update.say) say.textContent = update.say;
  }

  function connection(text, lost) {
    const p = document.getElementById("connection");
    p.hidden = false;
    p.textContent = text;
    p.classList.toggle("lost", lost);
  }

  function live() {
    const { live: address, since } = document.body.dataset;
    if (!address || !window.EventSource) return;
    let source, id = since;
    const connect = () => {
      source = new EventSource(address + (address.includes("?") ? "&" : "?") + "since=" + encodeURIComponent(id));
      source.onopen = () => connection("live", false);
      source.onerror = () => {
        connection("not connected: this page may be out of date", true);
        // A refused stream is not tried again by the browser itself.
        if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
      };
      source.addEventListener("update", (e) => {
        id = e.lastEventId;
        apply(JSON.parse(e.data));
      });
    };
    connect();
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (e) => { if (e.persisted) connect(); });
  }

  // What a reader opened or closed stays so.
  addEventListener("click", (e) => {
    const summary = e.target.closest && e.target.closest("summary");
    if (summary) summary.parentNode.dataset.touched = "yes";
  });

  // follow reads a log on from where the page has it.
  async function follow() {
    const pre = document.getElementById("log-lines");
    if (!pre || !pre.dataset.stream) return;
    const state = document.getElementById("log-state");
    const most = 2e6;
    pre.scrollTop = pre.scrollHeight;
    try {
      const answer = await fetch(pre.dataset.stream);
      if (!answer.ok) throw new Error(await answer.text());
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let fresh = true, length = 0;
      state.textContent = "Following. It scrolls on while you are at its end.";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const end = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
        // The stream begins with the lines that the page already shows.
        if (fresh) { pre.textContent = ""; fresh = false; }
        pre.append(value.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd"));
        length += value.length;
        while (length > most && pre.childNodes.length > 1) {
          length -= pre.firstChild.length;
          pre.firstChild.remove();
        }
        if (end) pre.scrollTop = pre.scrollHeight;
      }
      state.textContent = "The container has ended.";
    } catch (e) {
      state.textContent = "Following has stopped: " + e.message;
    }
  }

  tell(document);
  live();
  follow();
  // Ages cost nothing while nobody looks.
  let timer;
  const tick = () => { tell(document); timer = setTimeout(tick, 1000); };
  const watch = () => { clearTimeout(timer); if (!document.hidden) tick(); };
  document.addEventListener("visibilitychange", watch);
  watch();
})();
