import itertools

import pytest
import torch

from fl_lightning.defenses import certified_clients, client_groups, voted


def test_flcert():
    assert certified_clients(11, 5, first_label=3, second_label=1) == 2
    assert certified_clients(11, 6, first_label=1, second_label=3) == 2
    assert certified_clients(5, 5, first_label=1, second_label=3) == 0
    groups = client_groups(17, 5, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(groups).tolist()) == list(range(17))
    with pytest.raises(ValueError, match="from 1 to the number of clients, 3, got 4"):
        client_groups(3, 4, torch.Generator())


def test_no_other_votes_of_that_many_groups_change_a_certified_label():
    random = torch.Generator().manual_seed(0)
    predictions = torch.randint(3, (7, 40), generator=random)
    labels, certified = voted(predictions, 3)
    assert 0 < int(certified.max()) <= 3
    for sample in range(40):
        for changed in itertools.combinations(range(7), int(certified[sample])):
            for votes in itertools.product(range(3), repeat=len(changed)):
                turned = predictions[:, sample : sample + 1].clone()
                turned[list(changed), 0] = torch.tensor(votes, dtype=torch.int64)
                assert int(voted(turned, 3)[0]) == int(labels[sample])
