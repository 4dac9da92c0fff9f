"use strict";
// Controls are made here, so that none is there without scripts. Data reaches the page only as text nodes.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // A fragment link in an iframe made with srcdoc would load the page around it, so scrolling is done here.
  const links = all(".rail a");
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById(link.getAttribute("href").slice(1))?.scrollIntoView({ behavior: "smooth", block: "start" });
    });
  }
  const linkOf = new Map(links.map((link) => [link.getAttribute("href").slice(1), link]));
  if ("IntersectionObserver" in window) {
    const seen = new Set();
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
      const first = all("section.part").find((part) => seen.has(part.id));
      for (const [id, link] of linkOf) link.classList.toggle("here", id === first?.id);
      const here = first && linkOf.get(first.id);
      const list = here?.closest("ol");
      list?.scrollTo({ left: here.offsetLeft - list.offsetLeft - 40 });
    }, { rootMargin: "-10% 0px -60% 0px" });
    all("section.part").forEach((part) => watcher.observe(part));
  }

  // The clipboard is closed to a sandboxed iframe; the older way still works there on a click.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = make("textarea", { value: text });
      area.style.cssText = "position:fixed;opacity:0";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const code of all("[data-copy]")) {
    const button = make("button", { type: "button", className: "copy", textContent: "copy" });
    button.setAttribute("aria-label", "Copy " + code.textContent);
    button.addEventListener("click", async () => {
      button.textContent = (await copy(code.dataset.copy)) ? "copied" : "not allowed";
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
    code.after(button);
  }

  for (const box of all(".table")) {
    const table = box.querySelector("table");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const limit = Number(box.dataset.collapse || 0);
    let wanted = "";
    let open = !limit;
    let counter = null;
    let more = null;
    const update = () => {
      let shown = 0;
      let matching = 0;
      for (const row of body.rows) {
        const matches = row.textContent.toLowerCase().includes(wanted);
        if (matches) matching += 1;
        row.hidden = !matches || (!open && !wanted && shown >= limit);
        if (!row.hidden) shown += 1;
      }
      if (counter) counter.textContent = wanted ? `${matching} of ${box.dataset.noun}` : box.dataset.noun;
      if (more) {
        more.hidden = Boolean(wanted);
        more.textContent = open ? "Show fewer" : `Show all ${box.dataset.noun}`;
      }
    };
    if ("filter" in box.dataset) {
      const input = make("input", { type: "search", placeholder: "Filter" });
      input.setAttribute("aria-label", "Filter " + table.caption.textContent);
      counter = make("span");
      counter.setAttribute("role", "status");
      input.addEventListener("input", () => {
        wanted = input.value.trim().toLowerCase();
        update();
      });
      box.prepend(make("div", { className: "tools" }, input, counter));
    }
    if (limit) {
      more = make("button", { type: "button", className: "more" });
      more.addEventListener("click", () => {
        open = !open;
        update();
      });
      box.append(more);
    }
    if ("sortable" in table.dataset) {
      const heads = [...table.tHead.rows[0].cells];
      heads.forEach((head, column) => {
        if (!rows.some((row) => "sort" in row.cells[column].dataset)) return;
        const button = make("button", { type: "button" }, ...head.childNodes);
        head.append(button);
        button.addEventListener("click", () => {
          const number = head.classList.contains("end");
          const before = head.getAttribute("aria-sort");
          const down = before ? before === "ascending" : number;
          heads.forEach((other) => other.removeAttribute("aria-sort"));
          head.setAttribute("aria-sort", down ? "descending" : "ascending");
          const key = (row) => row.cells[column].dataset.sort;
          const compare = (a, b) => {
            const [left, right] = [key(a), key(b)];
            if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
            const numbers = [Number(left), Number(right)];
            const order = numbers.some(Number.isNaN) ? left.localeCompare(right) : numbers[0] - numbers[1];
            return down ? -order : order;
          };
          body.append(...rows.slice().sort(compare));
          update();
        });
      });
    }
    update();
  }

  const tip = make("div", { className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const hideTip = () => (tip.hidden = true);
  const showTip = (lines, x, y) => {
    tip.replaceChildren(...lines.filter(Boolean).map((line, index) => make(index ? "span" : "b", { textContent: line })));
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(12, Math.min(x + 14, innerWidth - width - 12)) + "px";
    tip.style.top = (y + 18 + height > innerHeight ? Math.max(12, y - height - 14) : y + 18) + "px";
  };
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

  for (const map of all(".map")) {
    const data = JSON.parse(map.querySelector(".map-data").textContent);
    const { x: xs, y: ys, group: dotGroups, label: dotLabels } = data.dots;
    const chosen = new Set();
    let wanted = "";
    const groupOn = (group) => !chosen.size || chosen.has(group);
    const drawings = all("svg", map).map((svg) => {
      const { width, height } = svg.viewBox.baseVal;
      const margin = Number(svg.dataset.margin);
      return { svg, width, height, place: (i) => [margin + xs[i] * (width - 2 * margin), margin + ys[i] * (height - 2 * margin)] };
    });
    const bubbleLines = (index) => {
      const bubble = data.bubbles[index];
      return [bubble.label, data.groups[bubble.group], ...bubble.detail];
    };

    const update = () => {
      const hits = [];
      if (wanted) dotLabels.forEach((label, i) => label.toLowerCase().includes(wanted) && groupOn(dotGroups[i]) && hits.push(i));
      const bubbleHit = (index) => !wanted || bubbleLines(index).some((line) => line?.toLowerCase().includes(wanted));
      for (const { svg, place } of drawings) {
        for (const mark of all("[data-group]", svg)) {
          const off = !groupOn(Number(mark.dataset.group));
          const index = mark.dataset.bubble;
          mark.classList.toggle("dim", off || (wanted && (index === undefined || !bubbleHit(Number(index)))));
        }
        const path = document.createElementNS(svg.namespaceURI, "path");
        path.setAttribute("d", hits.map((i) => "M" + place(i).map((v) => v.toFixed(1)).join(" ") + "h0").join(""));
        path.setAttribute("stroke-width", 1.3 * Number(svg.dataset.dot));
        svg.querySelector(".found").replaceChildren(...(hits.length ? [path] : []));
      }
      if (counter) counter.textContent = wanted ? `${hits.length} found` : "";
    };

    let counter = null;
    const legend = map.querySelector(".legend");
    if (legend) {
      const input = make("input", { type: "search", placeholder: `Find ${data.noun}` });
      input.setAttribute("aria-label", `Find a ${data.noun} on the map`);
      counter = make("span");
      counter.setAttribute("role", "status");
      input.addEventListener("input", () => {
        wanted = input.value.trim().toLowerCase();
        update();
      });
      const list = legend.querySelector("ul");
      legend.replaceChildren(make("div", {}, make("div", { className: "tools" }, input, counter), list));
      for (const item of list.children) {
        const group = Number(item.dataset.group);
        const button = make("button", { type: "button" }, ...item.childNodes);
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => {
          chosen.has(group) ? chosen.delete(group) : chosen.add(group);
          button.setAttribute("aria-pressed", String(chosen.has(group)));
          update();
        });
        item.append(button);
      }
    }

    for (const { svg, width, place } of drawings) {
      // The browser's own tooltip would cover ours; the label stays for screen readers.
      all("title", svg).forEach((title) => title.remove());
      const circles = all(".bubbles circle", svg);
      const point = (event) => {
        const circle = event.target.closest?.(".bubbles circle");
        if (circle) return showTip(bubbleLines(Number(circle.dataset.bubble)), event.clientX, event.clientY);
        const frame = svg.getBoundingClientRect();
        const scale = width / frame.width;
        const [left, top] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
        let best = -1;
        let nearest = (event.pointerType === "touch" ? 22 : 10) * scale;
        nearest *= nearest;
        for (let i = 0; i < xs.length; i += 1) {
          if (!groupOn(dotGroups[i])) continue;
          const [x, y] = place(i);
          const distance = (x - left) ** 2 + (y - top) ** 2;
          if (distance < nearest) [nearest, best] = [distance, i];
        }
        best < 0 ? hideTip() : showTip([dotLabels[best], data.groups[dotGroups[best]]], event.clientX, event.clientY);
      };
      svg.addEventListener("pointermove", point);
      svg.addEventListener("pointerdown", point);
      svg.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && hideTip());
      circles.forEach((circle, index) => {
        circle.addEventListener("focus", () => {
          const frame = circle.getBoundingClientRect();
          showTip(bubbleLines(Number(circle.dataset.bubble)), frame.right, frame.bottom - 14);
        });
        circle.addEventListener("blur", hideTip);
        circle.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          const next = circles[(index + step + circles.length) % circles.length];
          circle.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
        });
      });
    }
  }

  addEventListener("beforeprint", () => all("details").forEach((details) => (details.open = true)));
})();
