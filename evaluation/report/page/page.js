// The sections in their order, and which one is being read.

showHead();
showFunnel();
showResults();
showMethods();
showCurves();
showOverlap();
showKeptBy();
showClusters();
showPairs();
showProvenance();

const links = [...document.querySelectorAll("#nav a")];
const watcher = new IntersectionObserver((seen) => {
  for (const one of seen)
    if (one.isIntersecting)
      links.forEach((link) => link.setAttribute("aria-current", link.hash === `#${one.target.id}`));
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("main section").forEach((place) => watcher.observe(place));
document.documentElement.dataset.shown = String(Math.round(performance.now()));
