const report = JSON.parse(one('#report-data').textContent);
const filter = {label: '', score: 0};

function drawCurves() {
  const curves = filter.label === '' ? report.curves : report.classes[filter.label].curves;
  const {left, top, width, height} = report.chart;
  all('#curves polyline.line').forEach((line, number) => {
    const values = Object.values(curves)[number] || [];
    line.setAttribute('points', values.map((precision, i) =>
      (left + width * i / (values.length - 1)).toFixed(1) + ',' +
      (top + height * (1 - precision)).toFixed(1)).join(' '));
  });
  one('#curves-of').textContent =
    filter.label === '' ? 'mean over the classes' : report.classes[filter.label].name;
}

function isShown(figure) {
  const {classes, score} = figure.dataset;
  return (filter.label === '' || classes.split(' ').includes(filter.label))
    && (score === '' || Number(score) >= filter.score);
}

function filterGalleries() {
  for (const group of all('.error-type')) {
    const cases = all('.case', group);
    cases.forEach((figure) => { figure.hidden = !isShown(figure); });
    const shown = cases.filter((figure) => !figure.hidden).length;
    one('.count', group).textContent = shown === cases.length ? shown : `${shown} of ${cases.length}`;
  }
}

function chooseClass(label) {
  filter.label = label;
  all('.pick-class').forEach((select) => { select.value = label; });
  drawCurves();
  filterGalleries();
}

all('.pick-class').forEach((select) => select.addEventListener('change', () => chooseClass(select.value)));
all('a[data-label]').forEach((link) => link.addEventListener('click', () => chooseClass(link.dataset.label)));
all('.case svg').forEach((picture) => picture.addEventListener('click', () =>
  picture.closest('.case').classList.toggle('large')));
one('#score').addEventListener('input', (event) => {
  filter.score = Number(event.target.value);
  one('#score-value').textContent = filter.score.toFixed(2);
  filterGalleries();
});
for (const kind of ['detections', 'ground-truth']) one(`#show-${kind}`).addEventListener('change', (event) =>
  one('#galleries').classList.toggle(`hide-${kind}`, !event.target.checked));
one('#confusion-score').addEventListener('change', (event) => all('.confusion').forEach((block) => {
  block.hidden = block.dataset.score !== event.target.value;
}));
filterGalleries();
