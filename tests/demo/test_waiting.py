"""One question at a time, in order; so many of a client wait, the others get a sentence, and nobody's place is lost."""

import threading
import time

import pytest

from sf_llava.demo.uploads import RefusedError
from sf_llava.demo.waiting import MAX_OF_CLIENT, MAX_WAITING, Line


def test_places_are_served_in_the_order_they_came():
    line, served = Line(), []
    first = line.stand("a")
    with first as place:
        assert place.wait(0)

        def come(name):
            with line.stand(name) as mine:
                while not mine.wait(1):
                    pass
                served.append(name)

        threads = []
        for name in "bcd":
            threads.append(threading.Thread(target=come, args=name))
            threads[-1].start()
            while len(line.places) < len(threads) + 1:
                time.sleep(0.001)
        with line.stand("a") as last:
            assert last.ahead == 4 and not last.wait(0.01)
        assert not served
    for thread in threads:
        thread.join(10)
    assert served == list("bcd") and not line.places


def test_one_client_holds_so_many_places_and_all_together_so_many():
    line = Line()
    places = [line.stand("a") for _ in range(MAX_OF_CLIENT)]
    for place in places:
        place.__enter__()
    with pytest.raises(RefusedError, match="of your questions wait"), line.stand("a"):
        pass
    others = [line.stand(str(number)) for number in range(MAX_WAITING - MAX_OF_CLIENT)]
    for place in others:
        place.__enter__()
    with pytest.raises(RefusedError, match="ask again in a while"), line.stand("new"):
        pass
    places[3].__exit__(None, None, None)
    with line.stand("a") as place:
        assert place.ahead == MAX_WAITING - 1


def test_a_place_is_given_up_when_its_answer_fails():
    line = Line()
    with pytest.raises(RuntimeError), line.stand("a"):
        raise RuntimeError
    assert not line.places
