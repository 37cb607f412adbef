"""Twenty questions for SmolLM2: everyday topics, code, arithmetic, German, and three of more than 500 tokens."""

from __future__ import annotations

_STORY = """\
The ferry to the island left at six in the morning, long before the shops along the harbour opened. Marta had not slept
much. She had packed one bag for the clothes and a wooden box for the instruments: two barometers, a wind gauge with a
cracked cup, and the notebook in which her grandfather had written down the weather every day for forty-one years. The
first entry was from the third of March 1952 and said only: "Fog until noon. Heard the horn four times." The last one,
in a hand that shook, said: "South wind. Somebody should go on with this."
On the deck she met a man who repaired lighthouses. There were not many left, he told her, and most of them ran without
anybody inside, but the lamps still had to be cleaned of salt twice a year and the gulls liked to nest in the vents. He
asked what she was carrying, and she opened the box for him. He turned the wind gauge in his hands for a while. "The cup
is no problem," he said. "I can make you a new one out of a soup ladle. But the bearing is worn, and so it will tell you
that every storm is a little smaller than it is." She laughed and said that this sounded like something her grandfather
would have liked.
When they arrived it was raining. The house stood behind the school, with a roof of slate and a door that was painted
blue on the outside and green on the inside. The neighbour, Mrs Olsen, had put bread and a jar of plum jam on the table,
together with a letter from the council. It asked, politely, who was going to read the instruments from now on, since
the fishermen had begun to complain: for three weeks nobody had hung the grey flag on the mast when the pressure fell.
Marta read the letter twice. Then she went outside with the barometers, hung them on the two nails that were still in
the wall beside the window, and waited until the needles had settled. The left one said 998, the right one 1001. She
wrote both numbers down, with the date and the hour, and below them: "Rain since seven. Two instruments, two opinions."
In the evening the man from the ferry came by with a ladle and a drill. Mrs Olsen brought a lamp. By nine the gauge was
turning on its pole again, and it showed a storm that was, all three agreed, a little smaller than the real one."""

_CODE = '''\
class Inventory:
    """Articles of a shop, by name, with their number and their price in cents."""

    def __init__(self):
        self.articles = {}
        self.history = []

    def add(self, name, count, price):
        if count <= 0:
            raise ValueError(f"cannot add {count} of {name}")
        old_count, old_price = self.articles.get(name, (0, price))
        self.articles[name] = (old_count + count, price)
        self.history.append(("add", name, count, price))
        return old_price != price

    def remove(self, name, count):
        if name not in self.articles:
            raise KeyError(name)
        old_count, price = self.articles[name]
        if count > old_count:
            raise ValueError(f"only {old_count} of {name} are left")
        self.articles[name] = (old_count - count, price)
        self.history.append(("remove", name, count, price))
        return count * price

    def total(self):
        return sum(count * price for count, price in self.articles.values())

    def cheapest(self):
        return min(self.articles, key=lambda name: self.articles[name][1])

    def undo(self):
        action, name, count, price = self.history.pop()
        old_count, old_price = self.articles[name]
        if action == "add":
            self.articles[name] = (old_count - count, old_price)
        else:
            self.articles[name] = (old_count + count, old_price)

    def report(self):
        lines = []
        for name in sorted(self.articles):
            count, price = self.articles[name]
            lines.append(f"{name:<20}{count:>6}{price / 100:>10.2f}")
        lines.append(f"{'total':<20}{'':>6}{self.total() / 100:>10.2f}")
        return "\\n".join(lines)
'''

_LOG = "\n".join(
    f"07:{minute:02} camera {minute % 3 + 1}: {17 + minute % 5} frames a second, {40 + 3 * minute} of 500 MB used, "
    f"queue {minute % 4}"
    for minute in range(22)
)

QUESTIONS = {
    "capital": "What is the capital of France?",
    "tea": "How do I make a good cup of green tea?",
    "sky": "Why is the sky blue? Explain it to a child of eight.",
    "bicycle": "The chain of my bicycle keeps falling off. What could be wrong?",
    "list": "Name five animals that live in the sea, one on each line.",
    "letter": "Write a short, polite note to my neighbour: the music was too loud last night.",
    "dinner": "I have eggs, rice, an onion and some spinach. What can I cook for dinner?",
    "moon": "Who was the first person to walk on the moon, and in which year?",
    "sum": "What is 17 + 26?",
    "product": "A box holds 12 eggs. How many eggs are in 7 boxes? Show your work.",
    "percent": "A jacket costs 80 dollars and is sold at 25% off. What does it cost now?",
    "fibonacci": "Write a Python function that returns the n-th Fibonacci number.",
    "sql": "Write a SQL query that counts the orders of each customer in the table orders(id, customer_id, total).",
    "bug": "What is wrong here?\n\n```python\ndef mean(values):\n    return sum(values) / len(value)\n```",
    "json": 'Turn this into JSON with the keys "name", "age" and "city": Anna is 34 and lives in Bergen.',
    "german": "Was ist die Hauptstadt von Österreich, und an welchem Fluss liegt sie?",
    "translate": "Übersetze ins Englische: Die Züge fahren heute später, weil es über Nacht geschneit hat.",
    "story": f"{_STORY}\n\nWhat did Marta write down on her first day on the island, and why are there two numbers?",
    "review": f"Please review this code and name one fault in it.\n\n```python\n{_CODE}```",
    "log": f"{_LOG}\n\nWhich value in this log grows all the time, and when will it reach its limit?",
}
