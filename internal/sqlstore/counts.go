package sqlstore

import "context"

// Counts is how many rows each of the tables has. One round trip.
func (s *Snapshot) Counts(ctx context.Context, tables []Table) ([]int64, error) {
	list := make([]int64, len(tables))
	for _, t := range tables {
		if err := t.check(); err != nil {
			return nil, err
		}
	}
	err := s.Read(ctx, func(b *Batch) {
		for i, t := range tables {
			b.One([]any{&list[i]}, `SELECT count(*) FROM `+quoted(t.Name))
		}
	})
	return list, err
}
