const canvas = one('.canvas'), drawing = one('svg.network', canvas);
const shapes = Object.fromEntries(all('.layer', drawing).map((shape) => [shape.dataset.layer, shape]));
const rows = all('.sortable tbody tr');
let selected = null;

function highlight(number) {
  all('.edge', drawing).forEach((edge) => edge.classList.toggle('lit',
    number !== null && (edge.dataset.from === number || edge.dataset.to === number)));
}

function select(number) {
  selected = number === selected ? null : number;
  Object.entries(shapes).forEach(([each, shape]) => shape.classList.toggle('selected', each === selected));
  rows.forEach((row) => row.classList.toggle('selected', row.dataset.layer === selected));
  highlight(selected);
  one('#details').textContent = selected === null ? '' : one('title', shapes[selected]).textContent;
}

Object.entries(shapes).forEach(([number, shape]) => {
  shape.addEventListener('click', () => select(number));
  shape.addEventListener('keydown', (event) => { if (event.key === 'Enter') select(number); });
  shape.addEventListener('mouseenter', () => highlight(number));
  shape.addEventListener('mouseleave', () => highlight(selected));
});
rows.forEach((row) => row.addEventListener('click', () => {
  if (row.dataset.layer !== selected) select(row.dataset.layer);
  shapes[row.dataset.layer].scrollIntoView({block: 'center', inline: 'center'});
}));
all('input.search').forEach((search) => search.addEventListener('input', () =>
  rows.forEach((row) => shapes[row.dataset.layer].classList.toggle('dim', row.hidden))));
one('#zoom').addEventListener('change', (event) => {
  const zoom = event.target.value, full = drawing.viewBox.baseVal.width;
  drawing.style.width = zoom === 'fit' ? '100%' : full * parseFloat(zoom) / 100 + 'px';
});
drawing.style.width = '100%';
