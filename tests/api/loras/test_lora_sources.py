from servers import Server


async def sites(server: Server) -> dict[str, bool]:
    answer = await server.client.get("/api/lora-sources")
    return {each["site"]: each["hasToken"] for each in answer.json()["sites"]}


async def test_a_token_is_kept_never_shown_and_removed(server: Server) -> None:
    kept = await server.client.put("/api/lora-sources/huggingface/token", json={"token": "hf_x"})
    assert (kept.status_code, kept.content) == (204, b"")
    assert await sites(server) == {"huggingface": True, "civitai": False, "replicate": False}
    assert "hf_x" not in (await server.client.get("/api/lora-sources")).text
    assert (await server.client.delete("/api/lora-sources/huggingface/token")).status_code == 204
    assert await sites(server) == {"huggingface": False, "civitai": False, "replicate": False}
    assert (await server.client.delete("/api/lora-sources/huggingface/token")).status_code == 404


async def test_another_site_and_a_wrong_token_are_refused(server: Server) -> None:
    assert (await server.client.put("/api/lora-sources/nowhere/token", json={"token": "x"})).status_code == 404
    for token in ("", "a b", "a\n", "x" * 501, 7, None):
        answer = await server.client.put("/api/lora-sources/civitai/token", json={"token": token})
        assert (answer.status_code, answer.json()["errorCode"][:7]) in {(400, "INVALID"), (400, "MISSING")}
    assert await sites(server) == {"huggingface": False, "civitai": False, "replicate": False}


async def test_only_an_admin_of_the_team_may_change_its_tokens(server: Server) -> None:
    session = (await server.client.get("/api/session")).json()
    team = session["teamId"]
    member = await server.client.post(f"/api/admin/teams/{team}/users", json={"name": "someone", "role": "MEMBER"})
    assert member.status_code == 201, member.text
    made = await server.client.post(
        f"/api/admin/teams/{team}/keys", json={"name": "key", "user": member.json()["userId"]}
    )
    assert made.status_code == 201, made.text
    headers = {"API-KEY": made.json()["key"]}
    refused = await server.client.put("/api/lora-sources/civitai/token", json={"token": "x"}, headers=headers)
    assert refused.status_code == 403
    assert (await server.client.get("/api/lora-sources", headers=headers)).status_code == 200
