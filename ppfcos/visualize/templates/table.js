'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);
// Controls stay hidden until this class is set: without scripts they do nothing.
document.documentElement.classList.add('live');

function sortBy(header) {
  const table = header.closest('table'), column = header.cellIndex;
  const ascending = header.getAttribute('aria-sort') === 'descending';
  const value = (row) => {
    const cell = row.cells[column].dataset.value;
    return column ? (cell === '' ? -Infinity : Number(cell)) : cell;
  };
  const compare = (a, b) => column ? value(a) - value(b) : value(b).localeCompare(value(a));
  const rows = [...table.tBodies[0].rows].sort((a, b) => ascending ? compare(a, b) : compare(b, a));
  all('th', table).forEach((other) => other.removeAttribute('aria-sort'));
  header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  table.tBodies[0].append(...rows);
}

all('.sortable th button').forEach((button) =>
  button.addEventListener('click', () => sortBy(button.closest('th'))));
all('input.search').forEach((search) => search.addEventListener('input', () => {
  const query = search.value.toLowerCase();
  all('.sortable tbody tr').forEach((row) => {
    row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(query);
  });
}));
