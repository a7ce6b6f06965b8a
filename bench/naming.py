"""Names of defended models against the catalog: what they are made of, and whether they can be."""

from __future__ import annotations

import json
from collections.abc import Callable

from bench.catalog import Catalog
from bench.weights import is_own
from models.errors import UserError
from models.families import unfit
from models.naming import read_names, read_terms
from models.registry import suggest

# In a matrix' or command's list of defences: all that train the network, and all that stand at the input.
TRAINED, AT_INPUT = "*", "+*"


def read_defense(text: str, catalog: Catalog) -> str:
    """A defence, or several joined by "+", in canonical form: without "none" and parameters left as they are.

    Those that train come first, each goes on from the weights of the one before. Raises UserError for unknown
    names and parameters, and for a defence that trains behind one at the input.
    """
    terms, behind = [], ""
    for term in read_terms(text):
        if term.name not in catalog.defenses:
            raise suggest("defense", term.name, sorted(catalog.defenses))
        entry = catalog.defenses[term.name]
        if behind and not entry.at_input:
            raise UserError(f"'{text}': {term.name} trains the network: it comes before {behind}")
        behind = term.name if entry.at_input else ""
        if term.name != "none":
            terms.append(str(term.settled("defense", entry.defaults)))
    return "+".join(terms) or "none"


def read_defenses(texts: tuple[str, ...], catalog: Catalog) -> list[str]:
    """`texts` in canonical form, "*" replaced by all defences that train and "+*" by those at the input."""
    found: list[str] = []
    for text in texts:
        if text in (TRAINED, AT_INPUT):
            found += [
                name
                for name, entry in sorted(catalog.defenses.items())
                if entry.at_input == (text == AT_INPUT)
            ]
        else:
            found.append(read_defense(text, catalog))
    return list(dict.fromkeys(found))


def refusal(model: str, defense: str, catalog: Catalog) -> str | None:
    """Why `defense` (canonical) does not fit `model`, or None."""
    reasons = (catalog.defenses[term.name].refuses.get(model) for term in read_terms(defense))
    return next((reason for reason in reasons if reason), None)


def unfit_for(model: str, data: str, catalog: Catalog) -> str | None:
    """Why a registered `model` cannot judge the data set `data`, or None."""
    family = catalog.models[model].family
    return unfit(family, data) if family else None


def trained_name(name: str, catalog: Catalog) -> str:
    """The name of the weights of the zoo model `name`: without the defences at its input."""
    if is_own(name):
        return name
    terms = read_terms(name)
    kept = [str(term) for term in terms[1:] if not catalog.defenses[term.name].at_input]
    return "+".join([str(terms[0]), *kept])


def identity(name: str, catalog: Catalog, weights: Callable[[str], str]) -> str:
    """What `name` stands for: its weights' hash, and every parameter of the defences at its input.

    Where a parameter names other networks, as that of an ensemble does, their weights' hashes belong to it.
    """
    parts = [weights(trained_name(name, catalog))]
    for term in () if is_own(name) else read_terms(name)[1:]:
        entry = catalog.defenses[term.name]
        if entry.at_input:
            parameters = {**entry.defaults, **dict(term.chosen)}
            parts.append(term.name + json.dumps(parameters, sort_keys=True))
            texts = [value for value in parameters.values() if isinstance(value, str)]
            others = [other for text in texts for other in read_names(text)]
            parts += [weights(other) for other in others if read_terms(other)[0].name in catalog.models]
    return "+".join(parts)
