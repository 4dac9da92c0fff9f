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

  for (const chart of all(".chart")) {
    const data = JSON.parse(chart.querySelector(".chart-data").textContent);
    const wide = chart.classList.contains("parallel");
    const spoken = make("p", { className: "unseen" });
    spoken.setAttribute("role", "status");
    chart.append(spoken);
    const linesOf = (index) => {
      if (!wide) {
        const [series, x, value, label] = data.points[index];
        return [label ?? `${data.x_label} ${x}`, `${data.series[series]}: ${value}`];
      }
      const [label, ...values] = data.lines[index];
      const named = values.map((value, axis) => `${data.axes[axis]}: ${value}`);
      return [label, named.at(-1), ...named.slice(0, -1)];
    };
    chart.querySelector(".sideways")?.addEventListener("scroll", hideTip, { passive: true });

    for (const svg of all(".drawings svg", chart)) {
      const found = svg.querySelector(".found");
      const shape = (name, attributes) => {
        const element = document.createElementNS(svg.namespaceURI, name);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        return element;
      };
      const strands = all(".strands path", svg);
      // Corners of every line, or the one place of every dot.
      const pairs = (text) => (text.match(/-?[\d.]+ -?[\d.]+/g) || []).map((pair) => pair.split(" ").map(Number));
      const places = wide ? strands.map((path) => pairs(path.getAttribute("d"))) : pairs(svg.dataset.places).map((place) => [place]);
      if (!places.length) continue;
      // Dots are stepped through from left to right, lines from the best down.
      const order = places.map((_, index) => index);
      wide ? order.reverse() : order.sort((a, b) => places[a][0][0] - places[b][0][0]);
      let shown = -1;

      const clear = () => {
        shown = -1;
        svg.classList.remove("lit");
        found.replaceChildren();
        hideTip();
      };
      const show = (index, x, y) => {
        if (index !== shown) {
          shown = index;
          svg.classList.toggle("lit", wide);
          if (wide) {
            const d = strands[index].getAttribute("d");
            found.replaceChildren(shape("path", { d }), shape("path", { d }));
          } else {
            const [cx, cy] = places[index][0];
            found.replaceChildren(shape("circle", { cx, cy, r: 8 }));
          }
        }
        showTip(linesOf(index), x, y);
      };
      const distance = (corners, x, y) => {
        if (!wide) return Math.hypot(corners[0][0] - x, corners[0][1] - y);
        let nearest = Infinity;
        for (let i = 1; i < corners.length; i += 1) {
          const [[x1, y1], [x2, y2]] = [corners[i - 1], corners[i]];
          const along = Math.max(0, Math.min(1, ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / ((x2 - x1) ** 2 + (y2 - y1) ** 2)));
          nearest = Math.min(nearest, Math.hypot(x1 + along * (x2 - x1) - x, y1 + along * (y2 - y1) - y));
        }
        return nearest;
      };
      const point = (event) => {
        const frame = svg.getBoundingClientRect();
        const scale = svg.viewBox.baseVal.width / frame.width;
        const [x, y] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
        let best = -1;
        let nearest = (event.pointerType === "touch" ? 26 : 14) * scale;
        // From the top of the drawing down, so that of equal ones the one that is seen wins.
        for (let index = places.length - 1; index >= 0; index -= 1) {
          const away = distance(places[index], x, y);
          if (away < nearest) [nearest, best] = [away, index];
        }
        best < 0 ? clear() : show(best, event.clientX, event.clientY);
      };
      const showAt = (index) => {
        const frame = svg.getBoundingClientRect();
        const scale = frame.width / svg.viewBox.baseVal.width;
        const [x, y] = places[index].at(-1);
        show(index, Math.min(frame.left + x * scale, innerWidth - 40), frame.top + y * scale);
        spoken.textContent = linesOf(index).join(", ");
      };
      svg.addEventListener("pointermove", point);
      svg.addEventListener("pointerdown", point);
      svg.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && clear());
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("focus", () => svg.matches(":focus-visible") && showAt(order[0]));
      svg.addEventListener("blur", clear);
      svg.addEventListener("keydown", (event) => {
        if (event.key === "Escape") return clear();
        const last = order.length - 1;
        const now = order.indexOf(shown);
        const next = {
          ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last,
        }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        showAt(order[Math.max(0, Math.min(last, next))]);
      });
    }
  }

  addEventListener("beforeprint", () => all("details").forEach((details) => (details.open = true)));
})();
