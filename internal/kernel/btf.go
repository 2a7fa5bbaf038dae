// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// kernelBTF is parsed once: it is some megabytes.
var kernelBTF = sync.OnceValues(btf.LoadKernelSpec)

// BTFHas reports whether the running kernel's struct structName has a field of
// that name, directly or in an anonymous struct or union inside it. It is false
// where the kernel has no BTF.
func BTFHas(structName, field string) bool {
	return findField(structName, field) == nil
}

func findField(structName, field string) error {
	spec, err := kernelBTF()
	if err != nil {
		return fmt.Errorf("load the kernel's BTF: %w", err)
	}
	types, err := spec.AnyTypesByName(structName)
	if err != nil {
		return fmt.Errorf("struct %s: %w", structName, ebpf.ErrNotSupported)
	}
	for _, t := range types {
		if s, ok := t.(*btf.Struct); ok && hasMember(s.Members, field) {
			return nil
		}
	}
	return fmt.Errorf("field %s of struct %s: %w", field, structName, ebpf.ErrNotSupported)
}

func hasMember(members []btf.Member, name string) bool {
	return slices.ContainsFunc(members, func(m btf.Member) bool {
		if m.Name != "" {
			return m.Name == name
		}
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			return hasMember(t.Members, name)
		case *btf.Union:
			return hasMember(t.Members, name)
		}
		return false
	})
}
