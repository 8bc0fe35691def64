// The report page's behaviour: sliders, tooltips. Reads only what the page carries and requests nothing.
(() => {
  "use strict";
  for (const slider of document.querySelectorAll(".compare input")) {
    slider.addEventListener("input", () => slider.parentElement.style.setProperty("--cut", slider.value + "%"));
  }

  const tip = document.getElementById("tip");
  const hide = () => { tip.style.display = "none"; };
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = (y - box.height - 12 > 6 ? y - box.height - 12 : y + 18) + "px";
  };
  const words = (element) => {  // the <title> is the tooltip without scripts; two at once would be one too many
    const title = element.querySelector("title");
    const text = title ? title.textContent : "";
    if (title) title.remove();
    return text;
  };
  addEventListener("scroll", hide, { passive: true });

  for (const bar of document.querySelectorAll(".tip")) {
    const text = bar.dataset.tip || words(bar);
    bar.addEventListener("pointermove", (event) => show(text, event.clientX, event.clientY));
    bar.addEventListener("pointerdown", (event) => show(text, event.clientX, event.clientY));
    bar.addEventListener("pointerleave", hide);
  }

  for (const plot of document.querySelectorAll("svg.points")) {
    const ring = plot.querySelector(".ring");
    const dots = [...plot.querySelectorAll(".dot")].map((dot) =>
      ({ x: dot.cx.baseVal.value, y: dot.cy.baseVal.value, text: words(dot) }));
    dots.sort((a, b) => a.x - b.x);
    let at = -1;
    const mark = (index) => {
      at = index;
      const dot = dots[index];
      ring.setAttribute("cx", dot.x);
      ring.setAttribute("cy", dot.y);
      ring.style.display = "inline";
      const matrix = plot.getScreenCTM();
      show(dot.text, matrix.a * dot.x + matrix.e, matrix.d * dot.y + matrix.f);
    };
    const leave = () => { ring.style.display = "none"; hide(); };
    const seek = (event) => {
      const matrix = plot.getScreenCTM();
      const x = (event.clientX - matrix.e) / matrix.a, y = (event.clientY - matrix.f) / matrix.d;
      let best = -1, least = (26 / matrix.a) ** 2;
      dots.forEach((dot, index) => {
        const distance = (dot.x - x) ** 2 + (dot.y - y) ** 2;
        if (distance < least) { least = distance; best = index; }
      });
      if (best < 0) leave(); else mark(best);
    };
    plot.addEventListener("pointermove", seek);
    plot.addEventListener("pointerdown", seek);
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !dots.length) return;
      event.preventDefault();
      mark(Math.max(0, Math.min(dots.length - 1, at + step)));
    });
  }
})();
